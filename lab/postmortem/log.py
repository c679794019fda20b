"""A kernel's complaints, cut out of its log.

Pure text in, frozen values out.  Formats are those of 6.1 and 6.12; what is not known is
left out of a report, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LINE = re.compile(r"<(\d)>\[\s*(\d+\.\d+)\] ?(.*)")
FRAME = re.compile(
    r"^\s*(\? )?([A-Za-z_][\w.]*)\+0x([0-9a-f]+)/0x([0-9a-f]+)(?: \[([\w-]+)[^\]]*\])?\s*$"
)
RIP = re.compile(
    r"RIP: 00(?:10|08):(?:([A-Za-z_][\w.]*)\+0x([0-9a-f]+)/0x([0-9a-f]+)(?: \[([\w-]+)\])?"
    r"|(0x[0-9a-f]+))"
)
REGISTER = re.compile(
    r"\b(R[A-Z]{2}|R\d\d|CR[0-4]|ORIG_RAX|EFLAGS|RSP): (?:0018:)?([0-9a-f]{8,16})"
)
CPU = re.compile(r"CPU: (\d+) (?:UID: \d+ )?PID: (\d+) Comm: (.{1,16}?) (?:Tainted|Not tainted)")
ADDRESS = re.compile(r"(?:address:? |access at |addr )(?:0x)?([0-9a-f]{8,16})")
ACCESS = re.compile(r"#PF: (.+)|((?:Read|Write) of size \d+|Free(?= of addr ))")
# KASAN and KFENCE tell what became of the object before, KASAN what it is.
PAST = re.compile(r"^(allocated|freed) by task \d+", re.IGNORECASE)
OBJECT = re.compile(
    r"^ which belongs to (the cache .*)|^The buggy address is located (.*)|^ (.*byte region \[.*)"
)
CODE = re.compile(r"Code: ((?:[0-9a-f]{2} |<[0-9a-f]{2}> ?|[0-9a-f]{2})+)$")
WHERE = re.compile(r"\bat ([\w./-]+\.[chS]):(\d+)")
END = "---[ end trace"

# First that fits names the report; a line that fits none starts no report.
STARTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("panic", r"^Kernel panic - not syncing"),
        ("kfence", r"^BUG: KFENCE: "),
        ("kasan", r"^BUG: KASAN: "),
        ("slub", r"^BUG [\w:-]+ \((?:Not tainted|Tainted)"),
        ("soft-lockup", r"BUG: soft lockup"),
        ("hard-lockup", r"hard LOCKUP"),
        ("hung-task", r"^INFO: task .* blocked for more than"),
        ("rcu-stall", r"^rcu: INFO: .*(?:detected|self-detected|stall)"),
        ("oom", r"invoked oom-killer:"),
        ("oops", r"^BUG: kernel NULL pointer dereference"),
        ("oops", r"^BUG: unable to handle"),
        ("oops", r"^BUG: .* stack guard page was hit"),
        ("oops", r"^kernel BUG at "),
        ("oops", r"^(?:Oops: )?general protection fault"),
        ("oops", r"^Oops: "),
        ("oops", r"^(?:[a-z][\w -]+): [0-9a-f]{4} \[#\d+\]"),
        # Lockdep: rules of locking or of RCU were broken, whether or not it went well this time.
        ("bug", r"^WARNING: (?:possible .*(?:detected|dependency)|inconsistent lock state)"),
        ("bug", r"^WARNING: (?:bad (?:unlock balance|contention)|held lock freed|Nested lock)"),
        ("bug", r"^WARNING: (?:suspicious RCU usage|lock held when|.* lock order detected)"),
        ("bug", r"^WARNING: .* still has locks held|^\[ BUG: "),
        ("warn", r"^WARNING: "),
        ("bug", r"^BUG: "),
        ("bug", r"^UBSAN: "),
        ("bug", r"^INFO: lockdep|^INFO: possible"),
        ("bug", r"^Uhhuh\. NMI received"),
    )
)
# The oops proper follows the line that says what happened; they are one report.
OOPS_LINE = re.compile(r"^(?:Oops: )|\[#\d+\]")
# Steps of reporting and of interrupts, which are the same whatever happened.
OURS = re.compile(
    r"^(?:dump_stack|show_|__?die|oops_|page_fault_oops|kernelmode_fixup|exc_|asm_|__warn"
    r"|report_bug|handle_bug|do_error_trap|do_trap|do_user_addr_fault|do_kern_addr|bad_area"
    r"|__bad_area|watchdog_|__hrtimer|hrtimer_|__sysvec|sysvec_|panic|vpanic|nmi_|unknown_nmi"
    r"|default_do_nmi|end_repeat_nmi|common_interrupt|irq_exit|__irq_exit|handle_softirqs"
    r"|__do_softirq|print_report|kasan_|kfence_|__schedule_bug|rcu_sched_clock|update_process"
    r"|tick_|check_cpu_stall|print_cpu_stall|handle_stack_overflow|dump_header|oom_kill"
    r"|out_of_memory|fixup_|search_|__slab_bug|slab_bug|object_err|print_trailer|__schedule\b"
    r"|schedule\b|schedule_timeout|__might|trace_|__kasan|__asan|poison_slab_object"
    r"|check_slab_allocation|__lock_acquire|lock_acquire|lock_release|print_\w*(?:bug|usage)"
    r"|check_(?:noncircular|prev|deadlock)|validate_chain|mark_lock|lockdep_)"
)
SUFFIX = re.compile(r"\.(?:constprop|isra|part|cold|llvm)\b.*$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the kernel's log."""

    level: int
    seconds: float
    text: str


@dataclass(frozen=True, slots=True)
class Frame:
    """One step of a call trace; `sure` is False for what merely lay on the stack."""

    function: str
    offset: int
    size: int
    module: str | None
    sure: bool = True

    @property
    def name(self) -> str:
        """The function without what the compiler added to its name."""
        plain = SUFFIX.sub("", self.function)
        return f"{plain} [{self.module}]" if self.module else plain

    def __str__(self) -> str:
        place = f"{self.function}+0x{self.offset:x}/0x{self.size:x}"
        return f"{place} [{self.module}]" if self.module else place


@dataclass(frozen=True, slots=True)
class Complaint:
    """One report of the kernel; None and empty where it does not say."""

    kind: str
    title: str
    seconds: float
    lines: tuple[str, ...]
    rip: Frame | None = None
    rip_address: int | None = None  # where it is not in any function
    frames: tuple[Frame, ...] = ()
    registers: tuple[tuple[str, str], ...] = ()
    address: int | None = None
    access: str | None = None
    code: str | None = None
    comm: str | None = None
    pid: int | None = None
    file: str | None = None
    line: int | None = None
    object: str | None = None  # what lies at the address
    past: tuple[tuple[str, tuple[Frame, ...]], ...] = ()  # "allocated" and "freed", by whom

    @property
    def steps(self) -> tuple[Frame, ...]:
        """Where it happened and who called, without the steps of reporting it."""
        return _own([self.rip] if self.rip is not None else [], self.frames)

    @property
    def history(self) -> tuple[tuple[str, tuple[Frame, ...]], ...]:
        """What was done with the object before, each with the steps that led there."""
        return tuple((what, _own([], frames)) for what, frames in self.past)


def _own(found: list[Frame], frames: Sequence[Frame]) -> tuple[Frame, ...]:
    # Without a frame to start from the kernel is sure of none: better those than nothing.
    sure = any(frame.sure for frame in frames)
    for frame in frames:
        if frame.sure is sure and not OURS.match(frame.function) and frame not in found:
            found.append(frame)
    return tuple(found)


def read(text: str) -> list[Entry]:
    """Return the lines of a saved log; what is no line of a log is left out."""
    return [
        Entry(int(match[1]), float(match[2]), match[3])
        for line in text.splitlines()
        if (match := LINE.fullmatch(line))
    ]


def kind_of(text: str) -> str | None:
    """Return which report a line starts, None when it starts none."""
    for kind, pattern in STARTS:
        if pattern.search(text):
            return kind
    return None


@dataclass(slots=True)
class _Open:
    """A report whose end was not seen yet."""

    kind: str
    title: str
    seconds: float
    lines: list[str] = field(default_factory=list)
    oopsed: bool = False


def complaints(entries: Iterable[Entry]) -> list[Complaint]:
    """Return the reports of a log in the order in which they were made."""
    found: list[Complaint] = []
    current: _Open | None = None
    for entry in entries:
        kind = kind_of(entry.text)
        if kind == "oops" and current is not None and current.kind == "oops":
            # "BUG: unable to handle …" and then "Oops: 0002 [#1]": one fault, two lines.
            first = OOPS_LINE.search(entry.text) is not None and not current.oopsed
            if first:
                current.oopsed = True
                kind = None
        if kind is not None:
            if current is not None:
                found.append(_close(current))
            current = _Open(kind, entry.text.strip(), entry.seconds)
            current.oopsed = kind == "oops" and OOPS_LINE.search(entry.text) is not None
        if current is None:
            continue
        current.lines.append(entry.text)
        if entry.text.startswith(END):
            found.append(_close(current))
            current = None
    if current is not None:
        found.append(_close(current))
    return found


def _close(report: _Open) -> Complaint:
    rip, rip_address = None, None
    frames: list[Frame] = []
    past: list[tuple[str, list[Frame]]] = []
    objects: list[str] = []
    registers: dict[str, str] = {}
    facts: dict[str, str | int] = {}
    user = False
    for line in report.lines:
        # The registers of the program that made the call, and what follows them; but not the past.
        user = (user or "RIP: 0033" in line) and PAST.match(line) is None
        if match := OBJECT.match(line):
            objects.append(next(part for part in match.groups() if part))
        if user:
            continue
        if match := RIP.search(line):
            if rip is None and rip_address is None:
                if match[5]:
                    rip_address = int(match[5], 16)
                else:
                    rip = Frame(match[1], int(match[2], 16), int(match[3], 16), match[4])
            continue
        if match := FRAME.match(line):
            (past[-1][1] if past else frames).append(
                Frame(match[2], int(match[3], 16), int(match[4], 16), match[5], match[1] is None)
            )
            continue
        if match := PAST.match(line):
            past.append((match[1].lower(), []))
        if line == "stack backtrace:":
            frames.clear()  # those before are of the locks' history
        _note(line, facts, registers)
    return Complaint(
        kind=report.kind,
        title=report.title,
        seconds=report.seconds,
        lines=tuple(report.lines),
        rip=rip,
        rip_address=rip_address,
        frames=tuple(frames),
        registers=tuple(registers.items()),
        address=_number(facts.get("address")),
        access=_text(facts.get("access")),
        code=_text(facts.get("code")),
        comm=_text(facts.get("comm")),
        pid=_number(facts.get("pid")),
        file=_text(facts.get("file")),
        line=_number(facts.get("line")),
        object=", ".join(objects) or None,
        past=tuple((what, tuple(steps)) for what, steps in past),
    )


def _note(line: str, facts: dict[str, str | int], registers: dict[str, str]) -> None:
    """Take what else a line of a report says; the first to say it counts."""
    if match := CPU.search(line):
        facts.setdefault("pid", int(match[2]))
        facts.setdefault("comm", match[3])
    if match := ACCESS.match(line):
        said = match[1] or match[2]
        facts["access"] = f"{facts['access']}; {said}" if "access" in facts else said
    if match := ADDRESS.search(line):
        facts.setdefault("address", int(match[1], 16))
    if match := WHERE.search(line):
        facts.setdefault("file", match[1])
        facts.setdefault("line", int(match[2]))
    if match := CODE.search(line):
        facts.setdefault("code", match[1].strip())
    for name, value in REGISTER.findall(line):
        registers.setdefault(name, value)


def _text(value: str | int | None) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: str | int | None) -> int | None:
    return value if isinstance(value, int) else None


def errno_said(text: str) -> str:
    """Return the reason that insmod gives for a refusal, as it words it."""
    first = text.strip().splitlines()[-1] if text.strip() else ""
    return first.rpartition(": ")[2] or first


def unknown_symbols(entries: Sequence[Entry]) -> list[str]:
    """Return the symbols that the kernel did not have."""
    pattern = re.compile(r"Unknown symbol (\S+)")
    return [match[1] for entry in entries if (match := pattern.search(entry.text))]


def version_magic(entries: Sequence[Entry]) -> str | None:
    """Return the kernel's words about a module of another kernel, if that is what it was."""
    for entry in entries:
        if "version magic" in entry.text or "disagrees about version" in entry.text:
            return entry.text.strip()
    return None
