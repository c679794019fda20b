"""What a return value means: the kernel's rule, and the mistake that is easy to make."""

from __future__ import annotations

import errno
import os

ERRORS = 4095  # MAX_ERRNO: values from minus this to -1 are errors, in an int and in a pointer


def as_int(rax: int) -> int:
    """Return the int that a function left in rax: its low 32 bits, with their sign."""
    low = rax & 0xFFFF_FFFF
    return low - (1 << 32) if low >> 31 else low


def as_long(rax: int) -> int:
    """Return all of rax, signed: what a pointer's error is, and what an int's is not."""
    return rax - (1 << 64) if rax >> 63 else rax


def is_error(value: int) -> bool:
    """Say whether a return value is an error, by the kernel's rule."""
    return -ERRORS <= value <= -1


def name(value: int) -> str:
    """Return the error's name, such as EMFILE; "" for what is no error."""
    if not is_error(value):
        return ""
    return errno.errorcode.get(-value, f"error {-value}")


def words(value: int) -> str:
    """Return what the error means, in the words of the C library."""
    return os.strerror(-value) if is_error(value) else ""


def status(value: int) -> str:
    """Return the book's word for it."""
    return "FAIL" if is_error(value) else "SUCCESS"
