"""What guest CPUs loaded and stored, as the QEMU plugin logged it; and its switch.

`layout` is the file, `switch` makes the plugin write it, `keep` makes of the large one the
small one of a run directory, in the same layout, and `log` reads that.
"""

from lab.access.keep import keep
from lab.access.layout import (
    HEADER_FIELDS,
    HEADER_LAYOUT,
    HEADER_SIZE,
    LEAST,
    MAGIC,
    OFFSETS,
    PAGE,
    RECORD_FIELDS,
    RECORD_LAYOUT,
    VERSION,
    WINDOWS,
    Flag,
    Header,
    Ranges,
    State,
    encode_header,
    encode_log,
    parse_header,
)
from lab.access.log import Access, AccessLog, read
from lab.access.switch import SIZE, Control, plugin_api, plugin_argument
from lab.access.tables import Given, Piece, given, given_e1000e

__all__ = [
    "HEADER_FIELDS",
    "HEADER_LAYOUT",
    "HEADER_SIZE",
    "LEAST",
    "MAGIC",
    "OFFSETS",
    "PAGE",
    "RECORD_FIELDS",
    "RECORD_LAYOUT",
    "SIZE",
    "VERSION",
    "WINDOWS",
    "Access",
    "AccessLog",
    "Control",
    "Flag",
    "Given",
    "Header",
    "Piece",
    "Ranges",
    "State",
    "encode_header",
    "encode_log",
    "given",
    "given_e1000e",
    "keep",
    "parse_header",
    "plugin_api",
    "plugin_argument",
    "read",
]
