"""Where this host gets Debian packages from: its own sources, or `LAB_MIRROR`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lab.errors import ImageError

ETC_APT = Path("/etc/apt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One enabled `deb` source of the host."""

    uri: str
    suites: tuple[str, ...]
    signed_by: str | None = None

    @property
    def archive(self) -> str | None:
        """Say which Debian archive this mirrors: main, security, or None for anything else."""
        last = urlsplit(self.uri).path.rstrip("/").rpartition("/")[2]
        return {"debian": "main", "debian-security": "security"}.get(last)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mirror:
    """Base address for one suite, and the keyring its index is signed with."""

    uri: str
    keyring: str | None

    def url(self, pool_path: str) -> str:
        """Return the address of a file of the pool."""
        # apt decodes what it is given once; a plus or a tilde must arrive as itself.
        return f"{self.uri.rstrip('/')}/{pool_path.replace('%', '%25').replace('+', '%2b')}"


def parse_deb822(text: str) -> list[Source]:
    """Return the enabled `deb` sources of a `.sources` file."""
    found: list[Source] = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in {" ", "\t"}:
                fields[key] = fields.get(key, "") + "\n" + line.strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in {"no", "false", "0", "off", "disable"}:
            continue
        signed = fields.get("signed-by", "").strip()
        for uri in fields.get("uris", "").split():
            suites = tuple(suite.strip("/") for suite in fields.get("suites", "").split())
            # A key written into the file itself is no path; the recipe's keyrings serve then.
            keyring = signed if signed.startswith("/") and "\n" not in signed else None
            found.append(Source(uri=uri, suites=suites, signed_by=keyring))
    return found


def parse_list(text: str) -> list[Source]:
    """Return the `deb` lines of a `.list` file."""
    found: list[Source] = []
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        match = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)", line)
        if match is None:
            continue
        options, uri, suite = match.groups()
        signed = re.search(r"signed-by=(/[^\s,]+)", options or "")
        found.append(
            Source(
                uri=uri, suites=(suite.strip("/"),), signed_by=signed.group(1) if signed else None
            )
        )
    return found


def of_host(etc: Path = ETC_APT) -> list[Source]:
    """Return the host's enabled Debian sources, in apt's own order."""
    found: list[Source] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix not in {".list", ".sources"} or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += parse_deb822(text) if path.suffix == ".sources" else parse_list(text)
    return [_resolved(source) for source in found]


def _resolved(source: Source) -> Source:
    # mirror+file: names a file that lists mirrors (Debian's cloud images); the first one serves.
    if not source.uri.startswith("mirror+file:"):
        return source
    path = Path(source.uri.removeprefix("mirror+file:"))
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError:
        return source
    uris = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    if not uris:
        return source
    return Source(uri=uris[0], suites=source.suites, signed_by=source.signed_by)


def mirrors(
    suites: Mapping[str, str],
    *,
    keyrings: Iterable[str],
    sources: Iterable[Source],
    environ: Mapping[str, str] | None = None,
) -> dict[str, Mirror]:
    """Return a mirror for each suite; `suites` says which archive (main, security) has it.

    `LAB_MIRROR` comes first: the address of a Debian mirror, and after a space that of its
    security archive where that is not the first with `-security` added.
    """
    found_keyring = next((path for path in keyrings if Path(path).is_file()), None)
    chosen = (os.environ if environ is None else environ).get("LAB_MIRROR", "").split()
    if chosen:
        bases = {"main": chosen[0], "security": chosen[-1]}
        if len(chosen) == 1:
            bases["security"] = chosen[0].rstrip("/") + "-security"
        return {
            suite: Mirror(uri=bases[archive], keyring=found_keyring)
            for suite, archive in suites.items()
        }
    debian = [source for source in sources if source.archive is not None]
    result: dict[str, Mirror] = {}
    for suite, archive in suites.items():
        fitting = [source for source in debian if source.archive == archive]
        # The suite itself where the host has it; else any mirror of the same archive has it too.
        exact = [source for source in fitting if suite in source.suites]
        if not fitting:
            raise ImageError(
                f"this host's package sources name no Debian mirror that serves {suite}",
                hint="set LAB_MIRROR to the address of a Debian mirror",
            )
        best = (exact or fitting)[0]
        result[suite] = Mirror(uri=best.uri, keyring=best.signed_by or found_keyring)
    return result
