"""Holds ledgers against the published schema."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jsonschema

from lab import ledger


@lru_cache
def validator() -> Any:
    """Return what checks a ledger; the schema itself is checked first."""
    jsonschema.Draft202012Validator.check_schema(ledger.schema())
    return jsonschema.Draft202012Validator(ledger.schema())


def check(value: object) -> None:
    """Fail with the place of the first fault of a ledger as JSON values."""
    fault = next(iter(validator().iter_errors(value)), None)
    assert fault is None, f"{list(fault.absolute_path)}: {fault.message[:200]}"
