"""bootstrap on a made-up host: a PATH of its own, a Python and an apt-get that only pretend."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
# What the script itself calls; all else of the real host is out of its sight.
BORROWED = ("cksum", "mkdir", "cat", "env", "rm", "touch", "chmod", "sleep")
PROGRAMS = ("qemu-system-x86_64", "gcc", "make", "depmod", "ip", "xz")
FILES = ("libc.a", "libelf.so.1", "ca-certificates.crt", "libbpf.a", "Python.h")
FOR_TESTS = ("chromium", "tshark", "clang", "bpftool")

PYTHON = """\
#!/bin/sh
echo "python $*" >>"$CALLS"
case "$*" in
*ensurepip*) exit 0 ;;
*realpath*) echo "$0" ;;
"-m venv --clear "*)
	rm -rf "$4"
	mkdir -p "$4/bin"
	cat >"$4/bin/python" <<'END'
#!/bin/sh
echo "pip $*" >>"$CALLS"
[ -z "${SLOW-}" ] || sleep 0.3
[ -z "${PIP_FAILS-}" ] || { echo "no such hash"; exit 1; }
END
	chmod +x "$4/bin/python"
	;;
esac
"""

APT = """\
#!/bin/sh
echo "apt-get $* ($DEBIAN_FRONTEND)" >>"$CALLS"
case "$*" in
*install*) [ -z "${APT_FAILS-}" ] || { echo "E: no mirror"; exit 100; }
	[ -n "${APT_LIES-}" ] || { touch "${0%/*}/gcc"; chmod +x "${0%/*}/gcc"; } ;;
esac
"""

TASKS = """\
import os
from invoke import task

@task
def where(_, what):
    print(os.path.dirname(__file__), os.getcwd(), what)
"""


class Host:
    """A folder that bootstrap takes for a whole machine."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "the checkout"
        self.bin = folder / "bin"
        self.calls_file = folder / "calls"
        self.checkout.mkdir()
        self.bin.mkdir()
        self.calls_file.touch()
        for name in BORROWED:
            (self.bin / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        if flock := shutil.which("flock"):
            (self.bin / "flock").symlink_to(flock)
        for name in (*PROGRAMS, *FOR_TESTS):
            self.program(name, "#!/bin/sh\n")
        for name in FILES:
            (folder / name).touch()
        self.program("python3", PYTHON)
        self.program("id", "#!/bin/sh\necho 0\n")
        script = (TOP / "bootstrap").read_text(encoding="utf-8")
        # Files looked for by their place, and the folders always searched, are this host's too.
        script = re.sub(
            r"/(?:usr|etc)/[\w/.*-]*/(libc\.a|libelf\.so\.1|libbpf\.a|Python\.h)",
            rf"{folder}/\1",
            script,
        )
        script = re.sub(r"/etc/[\w/.-]*\.crt", f"{folder}/{FILES[2]}", script)
        script = script.replace("/usr/bin/python3", str(self.bin / "python3"))
        script = script.replace(":/usr/sbin:/sbin", "")
        assert "/usr/" not in re.sub(r"#.*", "", script)
        (self.checkout / "bootstrap").write_text(script, encoding="utf-8")
        (self.checkout / "bootstrap").chmod(0o755)
        (self.checkout / "requirements.lock").write_text("x==1\n", encoding="utf-8")

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text, encoding="utf-8")
        (self.bin / name).chmod(0o755)

    def remove(self, name: str) -> None:
        (self.bin / name).unlink()

    def argv(self, *arguments: str) -> list[str]:
        return [str(self.checkout / "bootstrap"), *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": str(self.bin), "CALLS": str(self.calls_file)} | more

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments),
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def calls(self, word: str) -> list[str]:
        lines = self.calls_file.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith(word)]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_without_arguments_it_says_how_it_is_called(host: Host) -> None:
    done = host.run()

    assert 2 == done.returncode
    assert done.stderr.startswith("usage: ")
    assert [] == host.calls("python")


def test_it_makes_the_environment_and_runs_its_arguments_in_it(host: Host) -> None:
    done = host.run("env")

    assert 0 == done.returncode, done.stderr
    venv = host.checkout / ".venv"
    assert f"VIRTUAL_ENV={venv}" in done.stdout.splitlines()
    assert f"PATH={venv}/bin:{host.bin}" in done.stdout.splitlines()
    (pip,) = host.calls("pip")
    assert "--require-hashes --no-deps -r" in pip


def test_arguments_and_exit_code_pass_through(host: Host) -> None:
    done = host.run("/bin/sh", "-c", 'printf "<%s>" "$@"; exit 42', "sh", "a b", "", "*")

    assert (42, "<a b><><*>") == (done.returncode, done.stdout)


def test_what_is_there_is_left_alone(host: Host) -> None:
    host.run("env")
    before = host.calls("")

    done = host.run("/bin/true")

    assert (0, "") == (done.returncode, done.stderr)
    assert before == host.calls("")


def test_a_changed_lock_makes_the_environment_anew(host: Host) -> None:
    host.run("/bin/true")
    lock = host.checkout / "requirements.lock"
    stat = lock.stat()
    lock.write_text("x==2\n", encoding="utf-8")
    os.utime(lock, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    host.run("/bin/true")

    assert 2 == len(host.calls("pip"))


def test_a_checkout_that_moved_makes_the_environment_anew(host: Host) -> None:
    host.run("/bin/true")
    host.checkout = host.checkout.rename(host.checkout.with_name("elsewhere"))

    assert f"VIRTUAL_ENV={host.checkout}/.venv" in host.run("env").stdout
    assert 2 == len(host.calls("pip"))


def test_an_interrupted_one_is_finished_next_time(host: Host) -> None:
    host.run("/bin/true")
    (host.checkout / ".venv" / ".stamp").unlink()

    assert 0 == host.run("/bin/true").returncode
    assert 2 == len(host.calls("pip"))
    assert (host.checkout / ".venv" / ".stamp").is_file()


def test_a_pip_that_fails_is_told_in_three_lines_and_can_be_tried_again(host: Host) -> None:
    done = host.run("/bin/true", PIP_FAILS="1")

    assert 3 == done.returncode
    what, where, advice = done.stderr.splitlines()[-3:]
    assert "bootstrap: pip could not install requirements.lock" == what
    log = Path(where.removeprefix("  log: "))
    assert "no such hash" in log.read_text(encoding="utf-8")
    assert advice.startswith("  try: ")
    assert 0 == host.run("/bin/true").returncode


@pytest.mark.parametrize(
    ("program", "package"),
    [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("gcc", "gcc"),
        ("make", "make"),
        ("depmod", "kmod"),
        ("xz", "xz-utils"),
        ("python3", "python3-venv"),
        ("../libc.a", "libc6-dev"),
        ("../libelf.so.1", "libelf1"),
        ("../ca-certificates.crt", "ca-certificates"),
    ],
)
def test_what_is_missing_is_named_with_its_reason(host: Host, program: str, package: str) -> None:
    host.remove(program)

    done = host.run("/bin/true")

    assert 3 == done.returncode
    assert re.search(rf"^  {package}: \w+", done.stderr, re.MULTILINE)
    assert f"there is no apt-get here to install: {package}\n" in done.stderr
    assert 3 == len(done.stderr.splitlines()[-3:])
    assert not (host.checkout / ".venv").exists()


def test_a_python_too_old_does_not_count(host: Host) -> None:
    host.program("python3", "#!/bin/sh\nexit 1\n")

    assert "python3-venv: " in host.run("/bin/true").stderr
    host.program("python3.12", PYTHON)
    assert 0 == host.run("/bin/true").returncode


def test_a_tool_that_went_away_later_is_missed_too(host: Host) -> None:
    host.run("/bin/true")
    host.remove("make")

    assert 3 == host.run("/bin/true").returncode


def test_root_installs_and_says_what_and_why(host: Host) -> None:
    host.program("apt-get", APT)
    host.remove("gcc")

    done = host.run("/bin/true", CI="1")

    assert 0 == done.returncode, done.stderr
    assert "  gcc: builds probes" in done.stderr
    assert "[Y/n]" not in done.stderr
    update, install = host.calls("apt-get")
    assert " update (noninteractive)" in update
    assert install.endswith(" install -y --no-install-recommends gcc (noninteractive)")


def test_an_apt_that_fails_is_told_with_its_log(host: Host) -> None:
    host.program("apt-get", APT)
    host.remove("gcc")

    done = host.run("/bin/true", APT_FAILS="1")

    assert 3 == done.returncode
    assert "bootstrap: apt-get could not install: gcc\n  log: " in done.stderr
    assert "E: no mirror" in (host.checkout / ".bootstrap.log").read_text(encoding="utf-8")


def test_an_apt_that_installs_nothing_is_not_believed(host: Host) -> None:
    host.program("apt-get", APT)
    host.remove("gcc")

    done = host.run("/bin/true", APT_LIES="1")

    assert 3 == done.returncode
    assert "installed, and still not found: gcc" in done.stderr


def test_a_user_without_sudo_is_told_what_root_should_do(host: Host) -> None:
    host.program("apt-get", APT)
    host.program("id", "#!/bin/sh\necho 1000\n")
    host.remove("gcc")

    done = host.run("/bin/true")

    assert 3 == done.returncode
    assert "  try: as root: apt-get install --no-install-recommends gcc\n" in done.stderr
    assert [] == host.calls("apt-get")


def test_a_user_with_sudo_installs_by_it(host: Host) -> None:
    host.program("apt-get", APT)
    host.program("id", "#!/bin/sh\necho 1000\n")
    host.program("sudo", '#!/bin/sh\necho "sudo $*" >>"$CALLS"\n[ "$1" != -n ] || shift\n"$@"\n')
    host.remove("gcc")

    done = host.run("/bin/true", CI="1")

    assert 0 == done.returncode, done.stderr
    assert all(call.startswith("sudo -n env ") for call in host.calls("sudo"))


def test_what_only_tests_need_is_installed_for_tests_alone(host: Host) -> None:
    host.program("apt-get", APT)
    host.remove("clang")

    assert 0 == host.run("/bin/true").returncode
    assert [] == host.calls("apt-get")
    host.run("invoke", "test")
    assert "install -y --no-install-recommends clang (" in host.calls("apt-get")[-1]


@pytest.mark.parametrize("fault", ["no apt", "no root", "apt fails"])
def test_without_what_only_tests_need_the_tests_run_all_the_same(host: Host, fault: str) -> None:
    host.remove("clang")
    host.program("invoke", "#!/bin/sh\necho invoked\n")
    host.program("apt-get", APT)
    if fault == "no apt":
        host.remove("apt-get")
    if fault == "no root":
        host.program("id", "#!/bin/sh\necho 1000\n")

    done = host.run("invoke", "test", APT_FAILS="1")
    assert (0, "invoked\n") == (done.returncode, done.stdout)
    assert "clang: builds the BPF probes" in done.stderr
    assert "the tests that need it are skipped" in done.stderr

    host.remove("gcc")
    assert 3 == host.run("invoke", "test", APT_FAILS="1").returncode


@pytest.mark.parametrize(("answer", "code"), [("n\n", 3), ("y\n", 0), ("\n", 0)])
def test_a_person_is_asked_first(host: Host, answer: str, code: int) -> None:
    host.program("apt-get", APT)
    host.remove("gcc")
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        done = subprocess.run(
            host.argv("/bin/true"),
            env=host.environment(),
            stdin=theirs,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(ours)
        os.close(theirs)

    assert "Install them with apt-get? [Y/n]" in done.stderr
    assert code == done.returncode, done.stderr
    assert bool(code) is (not host.calls("apt-get"))


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_two_at_once_make_one_environment(host: Host) -> None:
    both = [
        subprocess.Popen(
            host.argv("/bin/true"),
            env=host.environment(SLOW="1"),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]

    assert [0, 0] == [one.wait(60) for one in both]
    assert 1 == len(host.calls("pip"))


def test_it_is_called_from_anywhere(host: Host, tmp_path: Path) -> None:
    for folder, name in ((host.checkout, "bootstrap"), (tmp_path, "the checkout/bootstrap")):
        done = subprocess.run(
            ["/bin/sh", name, "env"],
            cwd=folder,
            env=host.environment(CDPATH="/"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert f"VIRTUAL_ENV={host.checkout}/.venv" in done.stdout, done.stderr


@pytest.mark.parametrize("stands", ["in the checkout", "below it", "elsewhere"])
def test_invoke_finds_the_tasks_from_anywhere(host: Host, tmp_path: Path, stands: str) -> None:
    invoke = Path(sys.executable).with_name("invoke")
    host.program("invoke", f'#!/bin/sh\nexec {invoke} "$@"\n')
    (host.checkout / "tasks.py").write_text(TASKS, encoding="utf-8")
    folder = {"in the checkout": host.checkout, "below it": host.checkout / "docs"}.get(
        stands, tmp_path / "the checkout of another"
    )
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        host.argv("invoke", "where", "--what", "a b"),
        cwd=folder,
        env=host.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert f"{host.checkout} {folder} a b\n" == done.stdout, done.stderr


def test_the_command_inherits_no_lock(host: Host) -> None:
    done = host.run("/bin/sh", "-c", "for f in /proc/$$/fd/*; do echo ${f##*/}; done")

    assert "9" not in done.stdout.split()


def test_the_warm_path_is_measured(host: Host, record_property: object) -> None:
    """Its time is printed, with -s; under 0.1 s is asked, no test asserts a time."""
    host.run("/bin/true")
    start = time.perf_counter()
    for _ in range(10):
        assert 0 == host.run("/bin/true").returncode
    print(f"bootstrap, warm: {(time.perf_counter() - start) * 100:.1f} ms")


# The lock that it installs.

LOCK = (TOP / "requirements.lock").read_text(encoding="utf-8")


def plain(requirement: str) -> str:
    """Return the name of a requirement in its normal form."""
    return re.split(r"[><=~! ;\[]", requirement)[0].lower().replace("_", "-").replace(".", "-")


def asked() -> list[str]:
    lines = (TOP / "requirements.in").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_line_of_the_lock_is_a_version_with_hashes() -> None:
    logical = re.sub(r" \\\n +", " ", LOCK).splitlines()

    for line in logical:
        if not line.startswith("#"):
            assert re.fullmatch(r"[\w.-]+==[\w.]+( --hash=sha256:[0-9a-f]{64})+", line), line[:80]


def test_the_lock_names_no_server() -> None:
    assert not re.search(r"://|^-|^ +--(?!hash=)", LOCK, re.MULTILINE)


def test_the_lock_holds_all_that_is_asked_for() -> None:
    locked = {plain(line) for line in LOCK.splitlines() if "==" in line}

    assert set(map(plain, asked())) <= locked


def test_the_project_asks_for_the_same() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    listed = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert sorted(asked(), key=plain) == sorted(listed, key=plain)
