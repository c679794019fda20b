"""Holds ledgers against the published schema."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jsonschema

from lab import ledger


@lru_cache
def validator() -> Any:
    """Return what checks a ledger; the schema itself is checked first."""
    schema = ledger.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(spelt_out(schema, schema["$defs"]))


def spelt_out(value: Any, known: dict[str, Any]) -> Any:
    """Return a schema with what it refers to in its place: to look it up takes half the time."""
    if isinstance(value, list):
        return [spelt_out(one, known) for one in value]
    if not isinstance(value, dict):
        return value
    whole = {key: spelt_out(one, known) for key, one in value.items() if key != "$ref"}
    if "$ref" in value:
        meant = spelt_out(known[value["$ref"].removeprefix("#/$defs/")], known)
        assert not whole.keys() & meant.keys() - {"description"}, value
        whole = {**meant, **whole}
    return whole


def check(value: object) -> None:
    """Fail with the place of the first fault of a ledger as JSON values."""
    fault = next(iter(validator().iter_errors(value)), None)
    assert fault is None, f"{list(fault.absolute_path)}: {fault.message[:200]}"
