"""What a test has in its hands: two guests it may crash, and measurements between them.

The pytest plugin (`lab.pytest_plugin`) lends them; another test runner may do the same::

    with Bench("mine", journal=Journal()) as bench, bench.lent(Needs()) as lab:
        lab.guest("receiver").load("counter.c")

A guest is put back to its snapshot before it is lent anew, if anything was done in it.
"""

from __future__ import annotations

from lab.ssh import Output
from lab.testing.bench import Bench, Needs
from lab.testing.guest import Crash, Expected, Guest
from lab.testing.pair import Lab

__all__ = ["Bench", "Crash", "Expected", "Guest", "Lab", "Needs", "Output"]
