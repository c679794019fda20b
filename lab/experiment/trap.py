"""The trap experiment: arm probes, and read from guest RAM what that did to text and stack."""

from __future__ import annotations

from typing import Any

from lab import kernel, rundir, spec, threads, trap
from lab.deadline import Deadline, wait_until
from lab.errors import DeadlineExceeded, GuestError
from lab.experiment.outcome import Outcome, tell
from lab.experiment.stand import Stand, common_manifest, keep_logs, keep_symbols
from lab.guest import Guest
from lab.journal import Journal
from lab.memory import GuestMemory
from lab.probe import REMOTE

GUEST = "sender"
FUNCTIONS = ("__sys_socket", "_copy_from_iter")
WAITED_IN = "do_nanosleep"  # what a program that sleeps stands in
SHOWN = 16  # bytes of text
INSIDE = 512  # bytes of a function that it may wait in
ENTRY = bytes.fromhex("0f1f440000")  # what stands in the place of a call of __fentry__
LANDING = 4  # bytes of endbr64
OPTIMISED_S = 3.0  # the kernel optimises some 0.05 s later, where it does at all
STANDS_S = 5.0


def guests(asked: spec.Playbook) -> tuple[str, ...]:
    """Name the guest that takes part."""
    del asked
    return (GUEST,)


def take(
    ready: Stand,
    asked: spec.Playbook,
    run_dir: rundir.RunDir,
    *,
    journal: Journal,
    command: str,
) -> None:
    """Read text and stack before, while and after kprobes and a kretprobe are armed."""
    deadline = Deadline.of_run(asked.deadline_s)
    manifest = common_manifest(ready, asked, guests=guests(asked), command=command)
    run_dir.write_manifest(manifest)
    ready.pair.touch()
    ready.pair.attach(GUEST, deadline=deadline.within(10.0))
    guest = ready.pair.guests[GUEST]
    folder = run_dir.guest(GUEST)
    try:
        keep_symbols(ready, guest, folder.symbols, journal=journal, deadline=deadline)
        guest.require_shell().put(ready.modules["trap"], f"{REMOTE}/trap.ko", deadline=deadline)
        with guest.memory() as memory, journal.step("arm and look"):
            seen = _Eye(guest, memory, folder.symbols.read_bytes(), deadline=deadline).watch()
        folder.write_json(trap.SEEN, seen)
    finally:
        keep_logs(run_dir, [guest])
    manifest["files"] = run_dir.digests(guests(asked))
    run_dir.write_manifest(manifest)


class _Eye:
    """Arms probes in one guest, and looks at its RAM."""

    def __init__(
        self, guest: Guest, memory: GuestMemory, kallsyms: bytes, *, deadline: Deadline
    ) -> None:
        self.guest = guest
        self.deadline = deadline
        self.kernel = kernel.find(memory)
        wanted = (*FUNCTIONS, WAITED_IN, threads.INIT, *kernel.BTF)
        self.symbols = kernel.addresses(kallsyms, wanted)
        missing = [name for name in wanted if name not in self.symbols]
        if missing:
            raise GuestError(guest.name, f"its kernel has no {', '.join(missing)}")
        self.types = self.kernel.types(self.symbols)
        self.text: list[dict[str, Any]] = []
        self.stack: list[dict[str, Any]] = []

    def watch(self) -> dict[str, Any]:
        """Return what was seen, in order."""
        places = self._places()
        self._look(trap.BEFORE, places)
        before = self._sleeper("before")
        slot = self._returns(before)
        if slot is not None:
            self._note(trap.BEFORE, before, slot)
        self._arm(places)
        try:
            self._look(trap.ARMED, places)
            armed = self._sleeper("armed")
            if slot is not None:
                # The kernel shifts its stack by chance at every system call; the function's own
                # frame is as large as it was.
                frame = slot - self._waits(before)
                self._note(trap.ARMED, armed, self._waits(armed) + frame)
            self._wait_optimised(places)
            self._look(trap.LATER, places)
        finally:
            # A kretprobe that is taken away while it holds an address lets it go at the return.
            self._run("killall sleep; rmmod trap")
        self._look(trap.AFTER, places)
        return {"text": self.text, "stack": self.stack, "function": WAITED_IN}

    def _run(self, command: str) -> str:
        return self.guest.require_shell().run(command, deadline=self.deadline).stdout

    # --- Text -----------------------------------------------------------------------------------

    def _places(self) -> dict[str, int]:
        """Return where probes go: at each function's entry, and at the instruction behind it."""
        found = {name: self.symbols[name] for name in FUNCTIONS}
        for name in FUNCTIONS:
            # Behind a landing for indirect calls, where there is one, sealed or not.
            head = self.kernel.read(found[name], LANDING + len(ENTRY))
            entry = head.find(ENTRY)
            if entry in (0, LANDING):
                inside = entry + len(ENTRY)
                found[f"{name}+{inside:#x}"] = found[name] + inside
        return found

    def _arm(self, places: dict[str, int]) -> None:
        at = ",".join(places)
        self._run(f"insmod {REMOTE}/trap.ko at={at} back={WAITED_IN}")

    def _look(self, moment: str, places: dict[str, int]) -> None:
        self.text += [
            {
                "moment": moment,
                "place": place,
                "address": address,
                "physical": self.kernel.physical(address),
                "found": self.kernel.read(address, SHOWN).hex(),
            }
            for place, address in places.items()
        ]

    def _wait_optimised(self, places: dict[str, int]) -> None:
        inside = [address for place, address in places.items() if "+" in place]

        def done() -> bool:
            self.guest.check()
            return all(self.kernel.read(at, 1)[0] != trap.BREAKPOINT for at in inside)

        try:
            wait_until(done, what="optimised jumps", deadline=Deadline(OPTIMISED_S))
        except DeadlineExceeded:
            return  # where the kernel does not optimise, the breakpoint stays: that is shown

    # --- Stack ----------------------------------------------------------------------------------

    def _sleeper(self, name: str) -> threads.Thread:
        """Start a program that sleeps; return it when it stands in the kernel."""
        pid = self.guest.require_agent().start(
            f"trap-{name}", "/bin/sleep", "60", deadline=self.deadline
        )

        def stands() -> threads.Thread | None:
            self.guest.check()
            try:
                all_ = threads.threads(self.kernel, self.types, self.symbols[threads.INIT])
                found = next((one for one in all_ if one.pid == pid), None)
            except ValueError:  # the list was changing
                return None
            return found if found is not None and self._waits(found) else None

        return wait_until(
            stands, what="a program that sleeps", deadline=self.deadline.within(STANDS_S)
        )

    def _waits(self, thread: threads.Thread) -> int:
        """Return the slot that leads back into `WAITED_IN`; 0 where no thread waits there."""
        start = self.symbols[WAITED_IN]
        slots = self._slots(thread)
        return min((at for at, value in slots.items() if start < value < start + INSIDE), default=0)

    def _slots(self, thread: threads.Thread) -> dict[int, int]:
        """Return the kernel addresses on a thread's stack, by where they lie."""
        size = thread.top - thread.pointer
        if not 0 < size < thread.stack_size:
            return {}
        raw = self.kernel.read(thread.pointer, size // 8 * 8)
        words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
        return {
            thread.pointer + 8 * number: word
            for number, word in enumerate(words)
            if word >= kernel.KERNEL_MAP
        }

    def _returns(self, thread: threads.Thread) -> int | None:
        """Return the slot with the address that `WAITED_IN` returns to.

        It is the one behind a call of it: the five bytes before it say so.
        """
        for slot, value in self._slots(thread).items():
            try:
                call = self.kernel.read(value - trap.NEAR, trap.NEAR)
            except ValueError:
                continue
            distance = int.from_bytes(call[1:], "little", signed=True)
            if call[0] == trap.CALL and value + distance == self.symbols[WAITED_IN]:
                return slot
        return None

    def _note(self, moment: str, thread: threads.Thread, slot: int) -> None:
        self.stack.append(
            {
                "moment": moment,
                "program": f"{thread.comm} (pid {thread.pid})",
                "address": slot,
                "physical": self.kernel.physical(slot),
                "value": self.kernel.word(slot),
            }
        )


def analyse(run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal) -> Outcome:
    """Say what was put into text and onto the stack."""
    del expect  # that the traps are there, and gone after, is what a run is for
    with journal.step("look"):
        found = trap.look(run_dir)
    run_dir.write_json("result.json", found.to_json())
    told = tell(run_dir, trap.told(found, run_dir.manifest()), good=not found.trouble)
    return Outcome(
        run=run_dir,
        result="result.json",
        value=found.to_json(),
        trouble=found.trouble,
        told=told,
    )
