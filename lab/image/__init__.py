"""The guests' image: packages by lock, a kernel, an initramfs, and headers for modules."""

from lab.image.store import (
    DEFAULT_SERIES,
    OWN,
    PINNED,
    Image,
    ensure,
    lock_path,
    relock,
    require,
    used,
    verify,
)

__all__ = [
    "DEFAULT_SERIES",
    "OWN",
    "PINNED",
    "Image",
    "ensure",
    "lock_path",
    "relock",
    "require",
    "used",
    "verify",
]
