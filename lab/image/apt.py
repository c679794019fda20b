"""A private apt root: its own lists and cache, no root, the host's network settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lab.errors import HostError, ImageError, ToolMissing
from lab.image.sources import Mirror

UPDATE_DEADLINE_S = 300
DOWNLOAD_DEADLINE_S = 1800  # 130 MB; minutes on a slow line
_HELPER = Path("/usr/lib/apt/apt-helper")


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A package as an index offers it."""

    name: str
    version: str
    suite: str
    pool: str
    sha256: str
    size: int
    depends: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A file to download."""

    suite: str
    pool: str
    target: Path


class Market(Protocol):
    """Where packages come from: a mirror, or a test's idea of one."""

    def download(self, wanted: Sequence[Wanted]) -> set[str]:
        """Fetch files; return the pool paths that are no longer served."""
        ...

    def offers(self) -> list[Offer]:
        """Return what the suites' indexes offer now."""
        ...


class Apt:
    """Debian's own suites through apt, in a root of our own under `home`."""

    def __init__(
        self,
        home: Path,
        *,
        mirrors: Mapping[str, Mirror],
        components: Mapping[str, Iterable[str]],
        architecture: str,
    ) -> None:
        self.home = home
        self.mirrors = mirrors
        self.components = components
        self.architecture = architecture

    def download(self, wanted: Sequence[Wanted]) -> set[str]:
        """Fetch files; return the pool paths that are no longer served."""
        urls = {one.pool: self.mirrors[one.suite].url(one.pool) for one in wanted}
        if not _HELPER.is_file():
            return {one.pool for one in wanted if not _download_plainly(urls[one.pool], one.target)}
        gone: set[str] = set()
        argv = [str(_HELPER), "download-file"]
        for one in wanted:
            one.target.unlink(missing_ok=True)
            # No digest for apt to compare: the caller does, and says both.
            argv += [urls[one.pool], str(one.target), ""]
        output = self._run(argv, timeout_s=DOWNLOAD_DEADLINE_S, must=False)
        absent = [one for one in wanted if not one.target.exists()]
        for one in absent:
            # apt prints the address it asked and then the reason, each on a line of its own.
            reason = _reason(output, urls[one.pool])
            if not re.search(r"\b404\b|File not found", reason):
                raise ImageError(
                    f"{one.pool.rpartition('/')[2]} cannot be had: {reason}",
                    hint="check the network, or set LAB_MIRROR to the address of a Debian mirror",
                )
            gone.add(one.pool)
        for one in wanted:
            # From a file: mirror apt makes a link, and the cache must hold the bytes themselves.
            if one.target.is_symlink():
                origin = one.target.resolve()
                one.target.unlink()
                shutil.copyfile(origin, one.target)
        return gone

    def offers(self) -> list[Offer]:
        """Return what the suites' indexes offer now."""
        if shutil.which("apt-get") is None or not _HELPER.is_file():
            raise ToolMissing("apt is not here, and only apt can read a suite's signed index")
        self._run(["apt-get", "update", "-q"], timeout_s=UPDATE_DEADLINE_S)
        listed = self._run(
            # The index by suite, as it lies on disk; apt-helper knows how it is packed.
            ["apt-get", "indextargets", "--format", "$(FILENAME)\t$(RELEASE)", _PACKAGES],
            timeout_s=30,
        )
        found: list[Offer] = []
        for line in listed.splitlines():
            path, tab, suite = line.partition("\t")
            if tab and suite in self.mirrors:
                text = self._run([str(_HELPER), "cat-file", path], timeout_s=60)
                found += parse_index(text, suite=suite)
        if not found:
            raise ImageError("the mirror's package indexes are empty")
        return found

    def _run(self, argv: Sequence[str], *, timeout_s: float, must: bool = True) -> str:
        environ = dict(os.environ) | {"APT_CONFIG": str(self._configure()), "LC_ALL": "C"}
        try:
            done = subprocess.run(
                argv,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(f"{argv[0]} did not end within {timeout_s:.0f} s") from error
        output = done.stdout.decode("utf-8", "replace")
        if must and done.returncode != 0:
            reasons = [line for line in output.splitlines() if line.startswith(("E:", "Err:"))]
            raise ImageError(
                f"{' '.join(argv[:2])} failed: {' '.join(reasons)[:600] or output[-600:]}",
                hint="check the network, or set LAB_MIRROR to the address of a Debian mirror",
            )
        return output

    def _configure(self) -> Path:
        # Read first of all (apt.conf(5)), so that it can turn the host's own parts off: those may
        # hold hooks.  What the host says of the network (proxies, certificates) is taken over.
        path = self.home / "apt.conf"
        for folder in ("lists/partial", "archives/partial"):
            (self.home / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
        (self.home / "status").touch()
        (self.home / "sources.list").write_text(self._sources(), encoding="utf-8")
        path.write_text(_host_network() + _settings(self.home, self.architecture), encoding="utf-8")
        return path

    def _sources(self) -> str:
        lines: list[str] = []
        for suite, mirror in self.mirrors.items():
            options = [f"arch={self.architecture}"]
            if mirror.keyring is not None:
                options.append(f"signed-by={mirror.keyring}")
            components = " ".join(self.components[suite])
            lines.append(f"deb [{' '.join(options)}] {mirror.uri} {suite} {components}\n")
        return "".join(lines)


_PACKAGES = "Created-By: Packages"


def _host_network() -> str:
    if shutil.which("apt-config") is None:
        return ""
    done = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, timeout=30, check=False
    )
    kept = [
        line
        for line in done.stdout.splitlines()
        if line.startswith("Acquire::") and not line.startswith("Acquire::IndexTargets")
    ]
    return "".join(line + "\n" for line in kept)


def _settings(home: Path, architecture: str) -> str:
    values = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",  # _apt may not enter a folder that is private to us
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Dir::State": str(home),
        "Dir::State::Lists": str(home / "lists"),
        "Dir::State::status": str(home / "status"),
        "Dir::Cache": str(home),
        "Dir::Cache::archives": str(home / "archives"),
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::sourcelist": str(home / "sources.list"),
        "Dir::Etc::sourceparts": "/dev/null",
    }
    return "".join(f'{key} "{value}";\n' for key, value in values.items())


def _reason(output: str, url: str) -> str:
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("Err:", "E:")) and url in line:
            return " ".join(part.strip() for part in lines[number : number + 2])
    return " ".join(line for line in lines if line.startswith(("E:", "Err:")))[:600] or "no reason"


def _download_plainly(url: str, target: Path) -> bool:
    # Hosts without apt.  The digest in the lock is what makes plain HTTP enough.
    if not url.startswith(("http://", "https://")):
        raise ImageError(f"without apt a mirror has to be reached by http or https, not {url}")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as out:  # noqa: S310 (checked above)
            shutil.copyfileobj(answer, out)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        raise ImageError(f"{target.name} cannot be had: HTTP {error.code}") from error
    except OSError as error:
        raise ImageError(
            f"{target.name} cannot be had: {error}",
            hint="set LAB_MIRROR to the address of a Debian mirror",
        ) from error
    return True


def parse_index(text: str, *, suite: str) -> list[Offer]:
    """Return the packages of a suite's `Packages` index."""
    found: list[Offer] = []
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
        try:
            found.append(
                Offer(
                    name=fields["Package"],
                    version=fields["Version"],
                    suite=suite,
                    pool=fields["Filename"],
                    sha256=fields["SHA256"],
                    size=int(fields["Size"]),
                    depends=fields.get("Depends", ""),
                )
            )
        except KeyError:
            continue
    return found
