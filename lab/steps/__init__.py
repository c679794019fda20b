"""A message's way as numbered steps: who was called with what, who touched its bytes, in order.

::

    calls.json  (lab.follow) --.
                               +-- rows --> numbered steps --> table, steps.json
    access.bin  (the plugin) --'                 |
    claims/functions/worksheet.yaml -- compared with'

Everything comes from a run's directory.  The two witnesses are independent: message bytes
that the plugin saw touched must have been touched inside a function that was followed.
"""

from lab.steps.build import FILE, Steps, build, windows
from lab.steps.compare import Compared, Fate
from lab.steps.rows import Step, Type
from lab.steps.table import render, told

__all__ = [
    "FILE",
    "Compared",
    "Fate",
    "Step",
    "Steps",
    "Type",
    "build",
    "render",
    "told",
    "windows",
]
