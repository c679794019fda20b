"""One guest in the hands of a test: load, run, expect a crash, and notice one unexpected."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lab import attempt, crash, kernel, postmortem, rundir
from lab import guest as machines
from lab.agent import Agent
from lab.deadline import Deadline
from lab.errors import (
    CommandFailed,
    DeadlineExceeded,
    GuestCrashed,
    GuestError,
    GuestLost,
    LabError,
    ProbeRejected,
)
from lab.postmortem.log import complaints
from lab.postmortem.log import read as read_log
from lab.postmortem.verdict import Verdict, decide
from lab.ssh import Output

if TYPE_CHECKING:
    from lab.testing.pair import Lab

LOAD_S = 20.0
RUN_S = 30.0
UNLOAD_S = 5.0
KILL_S = 2.0
QUICK_S = 5.0
COPY_S = 30.0
ANSWER_S = 10.0  # for a heartbeat at a test's end; in a guest that lives one comes in 0.1 s
LATE_S = 5.0  # an expected crash may come so late
FIRST_LINES = 14  # of a post-mortem, in the failure of a test


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Crash:
    """One crash of a guest: its run directory, and what was read from it."""

    guest: str
    test: str
    run: rundir.RunDir
    found: postmortem.Postmortem

    @property
    def verdict(self) -> str:
        return self.found.verdict.word

    @property
    def at(self) -> str:
        """The place to look at: `file.c:line function+offset` where it is known."""
        return self.found.at

    @property
    def title(self) -> str:
        """What the kernel said first: `BUG: kernel NULL pointer dereference, address: …`."""
        complaint = self.found.verdict.complaint
        return self.found.verdict.why if complaint is None else complaint.title

    @property
    def text(self) -> str:
        """The post-mortem as people read it."""
        return postmortem.render(self.found)

    def __repr__(self) -> str:
        return f"<{self.guest}: {self.verdict} at {self.at}: {self.title}>"


class Expected:
    """What `expect_crash` yields."""

    def __init__(self) -> None:
        self.found: Crash | None = None

    @property
    def crash(self) -> Crash:
        """The crash, once the block of `expect_crash` has ended."""
        if self.found is None:
            raise AttributeError("the crash is known when the block of expect_crash has ended")
        return self.found


class Guest:
    """A guest that a test may do anything to; every crash of it is noticed, and is an error."""

    def __init__(self, machine: machines.Guest, lab: Lab) -> None:
        self.machine = machine
        self.lab = lab
        self.used = False  # something was done in it since its memory was the snapshot's
        self.spent = ""  # the test in which it crashed
        self._unexpected: Crash | None = None  # until a test has failed by it
        self._loaded: dict[str, crash.Module] = {}
        self._held = contextlib.ExitStack()
        self._session: crash.Session | None = None
        self._well_at: tuple[int, int] | None = None  # of its log; None: something was done since

    def __repr__(self) -> str:
        return f"<guest {self.name} of lab '{self.lab.pair.name}'>"

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def address(self) -> str:
        """Its IPv4 address on the link."""
        return self.machine.me.address

    # -- what a test does ------------------------------------------------------------

    def load(
        self,
        path: str | Path,
        *parameters: str,
        module: str | None = None,
        deadline_s: float = LOAD_S,
    ) -> crash.Module:
        """Build the module at `path` for this kernel and load it.

        `path` is a .c file, a folder with a Makefile or a .ko, looked for beside the test
        first; `module` picks one where a folder makes several.  Raises `ProbeBuildFailed`,
        `ProbeRejected`, `GuestCrashed` or `DeadlineExceeded`.
        """
        __tracebackhide__ = True
        session = self._armed()
        made = crash.prepare(
            self.lab.find(path), self.lab.setup.image, journal=self.lab.journal, name=module
        )
        remote = session.push(made)
        self._loaded[made.name] = made
        self._do("load", "insmod", remote, *parameters, seconds=deadline_s)
        if self._exit("load") != 0:
            phase = session.seen.phases.pop()
            del self._loaded[made.name]
            raise ProbeRejected(
                f"{self.name}: {made.name} was refused: {phase['said'].strip()}"
                f"{''.join(f' | {line}' for line in self.log()[-2:])}"
            )
        return made

    def unload(self, module: crash.Module | str, *, deadline_s: float = UNLOAD_S) -> None:
        """Unload a module; raises `CommandFailed` where the kernel says no."""
        __tracebackhide__ = True
        name = module if isinstance(module, str) else module.name
        self._do("unload", "rmmod", name, seconds=deadline_s)
        if (code := self._exit("unload")) != 0:
            raise CommandFailed(self.name, f"rmmod {name}", code, self._agent.said("unload"))

    def run(self, command: str, *, check: bool = True, deadline_s: float = RUN_S) -> Output:
        """Run `command` in the guest's shell, as root, and return what it printed.

        It reaches the guest over a virtio-serial port, not over the network under test.  Output
        is what was printed, to the last newline or its absence, as `subprocess` gives it; bytes
        that are not UTF-8 become U+FFFD, and after 16 million characters stderr says that no
        more was kept.  A program left in the
        background must not keep the shell's stdout open.  Raises `CommandFailed` for an exit
        status other than 0 (not with `check=False`), `GuestCrashed`, `DeadlineExceeded`.
        """
        __tracebackhide__ = True
        self._do("run", "sh", "-c", command, seconds=deadline_s)
        output = Output(
            stdout=self._agent.printed("run", "out"),
            stderr=self._agent.printed("run", "err"),
            exit_code=self._exit("run"),
        )
        if check and output.exit_code != 0:
            said = output.stderr or output.stdout
            raise CommandFailed(self.name, command, output.exit_code, said)
        return output

    def watch(self, seconds: float) -> None:
        """Do nothing but watch the guest for a while."""
        __tracebackhide__ = True
        if not self._armed().soak("soak", seconds):
            self._crashed()

    def put(self, local: str | Path, remote: str, *, deadline_s: float = COPY_S) -> None:
        """Copy a file into the guest, over SSH."""
        self._armed()
        source = self.lab.find(local)
        self.machine.require_shell().put(source, remote, deadline=Deadline(deadline_s))

    def get(self, remote: str, local: str | Path, *, deadline_s: float = COPY_S) -> Path:
        """Copy a file out of the guest, over SSH, to the path `local` and return that."""
        self._armed()
        target = Path(local)
        self.machine.require_shell().get(remote, target, deadline=Deadline(deadline_s))
        return target

    def log(self) -> list[str]:
        """Return what the kernel has said since the guest was first used, line by line."""
        session = self._armed()
        session.watcher.look()
        return [line.text for line in session.seen.lines]

    @contextlib.contextmanager
    def expect_crash(
        self, verdict: str | None = None, at: str | None = None, *, within_s: float = LATE_S
    ) -> Iterator[Expected]:
        """Demand that the guest crashes inside the block, or within `within_s` after it.

        `verdict` is a word of `lab.postmortem.VERDICTS`, `at` a beginning of the place, such
        as `broken.c:12`.  Another crash is `GuestCrashed`, none is `GuestError`.  Afterwards
        the guest is of no use to this test, unless the verdict is `warn`.
        """
        __tracebackhide__ = True
        if verdict is not None and verdict not in postmortem.VERDICTS:
            raise ValueError(f"'{verdict}' is no verdict: {', '.join(postmortem.VERDICTS)}")
        session = self._armed()
        session.watcher.look()
        if self._judged().word != "loaded":
            self._crashed("before the block of expect_crash: ")
        expected = Expected()
        try:
            yield expected
        except GuestCrashed as error:
            if error.guest != self.name:
                raise
        except (GuestError, DeadlineExceeded):
            # SSH, or a measurement, may notice a death before the watcher has looked.
            if not self._comes(within_s):
                raise
        else:
            if not self._comes(within_s):
                raise GuestError(
                    self.name, f"expected {verdict or 'a crash'}, and none came in {within_s:g} s"
                )
        found = self._collected()
        expected.found = found
        if wrong := postmortem.matches(found.found, verdict, at):
            raise GuestCrashed(
                self.name, f"expected {'; '.join(wrong)}\n{_first(found)}", log=found.run.path
            )
        self._unexpected = None
        if found.verdict == "warn":  # nothing was harmed: the test goes on
            self.spent = ""
            self._require_session().watch_anew()

    # -- what the bench does ------------------------------------------------------------

    def settle(self) -> None:
        """Raise `GuestCrashed` if the guest came to harm and no `expect_crash` accepted it.

        Asked at the end of a test, so that a crash fails the test that caused it, whether
        the test was told of it and went on or not.  One crash is raised once.
        """
        session = self._session
        if session is not None and not self.spent and not self._well(session):
            self._collected()
        if (found := self._unexpected) is not None:
            self._unexpected = None
            raise GuestCrashed(self.name, _first(found), log=found.run.path)

    def _well(self, session: crash.Session) -> bool:
        """Return whether the guest answers and nothing in it complains."""
        watcher, agent, seen = session.watcher, self._agent, session.seen
        if self._well_at is not None:
            watcher.look()
            if not seen.fatal and self._well_at == (seen.records, seen.lost):
                return True
        before = agent.beats
        came = watcher.until(
            lambda: agent.beats > before, deadline=Deadline(ANSWER_S), what="a heartbeat"
        )
        well = came and self._judged().word == "loaded"
        self._well_at = (seen.records, seen.lost) if well else None
        return well

    def forget(self) -> None:
        """Be a guest in which nothing was done: its memory is the snapshot's."""
        self._held.close()
        self._session = self._well_at = None
        self._loaded.clear()
        self.used, self.spent, self._unexpected = False, "", None

    # -- inside ----------------------------------------------------------------------------

    def _armed(self) -> crash.Session:
        __tracebackhide__ = True
        if self.spent:
            raise GuestLost(self.name, f"it crashed in {self.spent} and was not put back since")
        self._well_at = None
        if self._session is None:
            self.lab.use(self)
            watched = crash.watched(
                self.machine, stored=self.lab.stored(), image=self.lab.setup.image
            )
            session = self._held.enter_context(watched)
            session.arm()
            self._session = session
        return self._session

    def _require_session(self) -> crash.Session:
        assert self._session is not None, "armed first"
        return self._session

    def _do(self, phase: str, *argv: str, seconds: float) -> None:
        """Run a program; a crash or a program that cannot be ended is `GuestCrashed`."""
        __tracebackhide__ = True
        session = self._armed()
        session.run(phase, *argv, seconds=seconds)
        if session.seen.fatal:
            self._crashed()
        if not session.seen.deadline:
            return
        if not self._killed(phase):
            self._crashed()
        session.seen.deadline = False
        raise DeadlineExceeded(f"'{' '.join(argv)}' in {self.name} did not end in {seconds:g} s")

    def _killed(self, phase: str) -> bool:
        """End a program that takes too long; what the kernel holds cannot be ended."""
        agent = self.machine.require_agent()
        with contextlib.suppress(LabError):
            agent.ask(f"kill {phase} KILL", expect="ok kill", deadline=Deadline(QUICK_S))
        return self._require_session().watcher.until(
            lambda: agent.ended(phase) is not None,
            deadline=Deadline(KILL_S),
            what=f"'{phase}' to end",
        )

    @property
    def _agent(self) -> Agent:
        return self.machine.require_agent()

    def _exit(self, phase: str) -> int:
        code = self._agent.ended(phase)
        assert code is not None, "it has ended"
        return code

    def _judged(self) -> Verdict:
        session = self._require_session()
        changed = session.changed() if self._loaded else {}
        entries = read_log(kernel.render(session.seen.lines))
        seen = {**session.seen.as_json(), "changed": changed}
        return decide(seen, entries, complaints(entries))

    def _comes(self, seconds: float) -> bool:
        """Wait for a crash; return whether there is one."""
        session = self._require_session()
        if self._judged().word == "loaded":
            known = len(session.seen.lines)

            def complained() -> bool:
                if len(session.seen.lines) == known:
                    return False
                return bool(complaints(read_log(kernel.render(session.seen.lines))))

            session.watcher.until(complained, deadline=Deadline(seconds), what="a crash")
            session.seen.deadline = False
        return session.seen.fatal or self._judged().word != "loaded"

    def _crashed(self, when: str = "") -> NoReturn:
        __tracebackhide__ = True
        found = self._collected()
        raise GuestCrashed(self.name, f"{when}{_first(found)}", log=found.run.path)

    def _collected(self) -> Crash:
        """Write the evidence of a crash, once, and return it."""
        if self.spent:
            return next(one for one in reversed(self.lab.crashes) if one.guest == self.name)
        session = self._require_session()
        session.stop_watching()
        run_dir = self.lab.new_run(self.name, modules=list(self._loaded))
        for made in self._loaded.values():
            attempt.keep_module(made, run_dir)
        session.collect(run_dir.guest(self.name))
        attempt.list_files(run_dir)
        found = postmortem.analyse(run_dir)
        run_dir.write_json("postmortem.json", found.as_json())
        run_dir.write_text("postmortem.txt", postmortem.render(found))
        self.spent = self.lab.test
        seen = Crash(guest=self.name, test=self.lab.test, run=run_dir, found=found)
        self._unexpected = seen
        self.lab.note(seen)
        return seen


def _first(found: Crash) -> str:
    lines = found.text.splitlines()
    more = [f"  … {len(lines) - FIRST_LINES} more lines"] if len(lines) > FIRST_LINES else []
    return "\n".join([*lines[:FIRST_LINES], *more, f"  run {found.run.path}"])
