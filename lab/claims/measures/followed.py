"""Function calls of the message's own system calls, as `lab.run-steps` followed them."""

from __future__ import annotations

from lab import calls
from lab.calls import Call, Calls
from lab.claims.evidence import Evidence
from lab.claims.measures.base import Measure, made
from lab.claims.types import Measured, NotHere
from lab.errors import EvidenceError

# x86-64, four levels: TASK_SIZE_MAX, the last page of the lower half is nobody's.
USER_LIMIT = calls.USER_END - 4096


def _called(seen: Evidence, function: str) -> list[tuple[Calls, Call]]:
    """Return each call of a function on the message's way.

    Raises `NotHere` for one that was not called: what a compiler put of it into its callers
    is not to be seen, so that says nothing of the source.
    """
    found = [
        (followed, call)
        for followed, root in seen.followed
        for call in followed.inside(root)
        if call.function.partition(".")[0] == function
    ]
    if found:
        return found
    names = {
        name.partition(".")[0]  # of foo.constprop.0 and foo.isra.0 the source says foo
        for followed, _ in seen.followed
        for name in seen.symbols(followed.guest).names()
    }
    if function in names:
        raise NotHere(
            f"{function} exists and is not called on this way; what the compiler put of it into "
            "a caller is not observable"
        )
    raise NotHere(f"{function} has no symbol of its own: compiled into its caller, not observable")


def _id(followed: Calls, call: Call) -> str:
    return f"{followed.guest}/{calls.FILE}#{call.number}"


def _caller(seen: Evidence, function: str) -> Measured:
    """Return who called a function; several where it had several callers."""
    rows = _called(seen, function)
    names = dict.fromkeys(
        followed.calls[call.parent].function if call.parent >= 0 else "nobody"
        for followed, call in rows
    )
    value = tuple(names)
    return made(value[0] if len(value) == 1 else value, [_id(*row) for row in rows])


def _first(seen: Evidence, words: str) -> tuple[Calls, Call, str]:
    """Return the first call of FUNCTION, and the name behind it: `FUNCTION NAME`."""
    function, _, name = words.partition(" ")
    followed, call = _called(seen, function)[0]
    return followed, call, name


def _argument(seen: Evidence, words: str) -> Measured:
    """Return the value of a function's argument; of a struct's member with a dot: msg.len."""
    followed, call, name = _first(seen, words)
    parameter, _, member = name.partition(".")
    value = call.before.get(parameter, {}).get(member) if member else call.argument(parameter)
    if value is None:
        raise EvidenceError(f"{seen.name}: {call.function} was followed without {name}")
    return made(value, [_id(followed, call)])


def _returned(seen: Evidence, function: str) -> Measured:
    followed, call, _ = _first(seen, function)
    if call.returned is None:
        raise EvidenceError(f"{seen.name}: what {function} returned is not known")
    return made(call.returned.value, [_id(followed, call)])


def _not_copied(seen: Evidence, function: str) -> Measured:
    """Return how many of the bytes it was asked for a copying function left."""
    followed, call, _ = _first(seen, function)
    asked = call.argument("bytes")
    if asked is None or call.returned is None:
        raise EvidenceError(f"{seen.name}: {function} does not say what it was asked or did")
    return made(asked - call.returned.value, [_id(followed, call)])


def _in_user_space(seen: Evidence, words: str) -> Measured:
    """Say whether the whole buffer that a function was given has addresses of user space.

    `FUNCTION BUFFER LENGTH`: its arguments.
    """
    function, at, length = words.split()
    followed, call, _ = _first(seen, function)
    start, size = call.argument(at), call.argument(length)
    if start is None or size is None:
        raise EvidenceError(f"{seen.name}: {function} was followed without {at} and {length}")
    return made(0 < start <= start + size <= USER_LIMIT, [_id(followed, call)])


def _behind(seen: Evidence, words: str) -> Measured:
    """Return how far an argument is behind what a function returned before it was called.

    `FUNCTION NAME EARLIER`: the last call of EARLIER that returned before FUNCTION was entered.
    """
    function, name, earlier = words.split()
    followed, call, _ = _first(seen, function)
    given = call.argument(name)
    before = [
        one
        for account, one in _called(seen, earlier)
        if account.guest == followed.guest
        and 0 <= one.left < call.entered
        and one.returned is not None
    ]
    if given is None or not before or before[-1].returned is None:
        raise EvidenceError(f"{seen.name}: {earlier} returned nothing before {function}")
    return made(given - before[-1].returned.value, [_id(followed, before[-1]), _id(followed, call)])


MEASURES: dict[str, Measure] = {
    "called-by": Measure("who called a function on the message's way", _caller, "function"),
    "argument": Measure(
        "what a function was given on the message's way", _argument, "function and argument"
    ),
    "returned": Measure("what it returned", _returned, "function"),
    "not-copied": Measure("bytes it was asked to copy and did not", _not_copied, "function"),
    "buffer-in-user-space": Measure(
        "whether a buffer is wholly in user space", _in_user_space, "function, buffer and length"
    ),
    "argument-behind": Measure(
        "bytes from what a function returned to an argument of a later one",
        _behind,
        "function, argument and earlier function",
    ),
}
