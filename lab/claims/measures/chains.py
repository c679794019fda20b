"""What hangs on a descriptor: the chain from the task to the address of the peer."""

from __future__ import annotations

from lab import chain
from lab.claims.evidence import Evidence
from lab.claims.measures.base import Measure, made
from lab.claims.types import Measured
from lab.errors import EvidenceError


def _case(seen: Evidence, name: str) -> chain.Case:
    """Return one kind of socket, of which probe and guest RAM say the same."""
    for row in seen.result(chain.FILE)["cases"]:
        case = chain.Case(**row)
        if case.name != name:
            continue
        if case.differences:
            raise EvidenceError(
                f"{seen.name}: {name}: inside and outside differ: {case.differences[0]}"
            )
        return case
    raise EvidenceError(f"{seen.name} has no socket called {name}")


def _descriptor(seen: Evidence, name: str) -> Measured:
    case = _case(seen, name)
    return made(case.fd, [case.evidence])


def _leads_to_sock(seen: Evidence, name: str) -> Measured:
    """Say whether the descriptor's file is a socket's, and every link back leads back."""
    case = _case(seen, name)
    links = case.outside
    good = (
        bool(links["f_op_is_socket"] and links["sock"])
        and links["socket_file"] == links["file"]
        and links["sk_socket"] == links["socket"]
    )
    return made(good, [case.evidence])


def _destination(seen: Evidence, name: str) -> Measured:
    """Return the destination that the struct sock holds, as its bytes in RAM are read."""
    case = _case(seen, name)
    _, port, _ = chain.port(case)
    return made(f"{chain.address(case)} port {port}", [case.evidence])


MEASURES: dict[str, Measure] = {
    "descriptor": Measure("the descriptor of a kind of socket", _descriptor, "socket"),
    "descriptor-leads-to-sock": Measure(
        "whether it leads to a struct sock, and that back to it", _leads_to_sock, "socket"
    ),
    "sock-destination": Measure("the address and port in its struct sock", _destination, "socket"),
}
