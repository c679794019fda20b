"""Mirrors come from the host's own sources, whatever form they have, or from LAB_MIRROR."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import ImageError
from lab.image import sources
from lab.image.sources import Source

DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/x.gpg

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm

Types: deb deb-src
URIs:
 http://mirror.example/debian-security
Suites: bookworm-security
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQ
"""

LIST = """\
# deb http://commented.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib # why
deb-src http://sources.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/y.gpg] http://mirror.example/debian-security bs main
deb [trusted=yes] http://tools.example/apt stable main
"""

SUITES = {"bookworm": "main", "bookworm-security": "security"}


def test_deb822_gives_enabled_binary_sources_alone() -> None:
    found = sources.parse_deb822(DEB822)
    assert ["http://mirror.example/debian/", "http://mirror.example/debian-security"] == [
        source.uri for source in found
    ]
    assert ("bookworm", "bookworm-updates") == found[0].suites
    assert found[0].signed_by == "/usr/share/keyrings/x.gpg"
    assert found[1].signed_by is None  # a key in the file itself is no path


def test_lines_give_enabled_binary_sources_alone() -> None:
    found = sources.parse_list(LIST)
    assert [
        "http://mirror.example/debian",
        "http://mirror.example/debian-security",
        "http://tools.example/apt",
    ] == [source.uri for source in found]
    assert found[1].signed_by == "/usr/share/keyrings/y.gpg"


def test_the_host_is_read_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(LIST)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/debian.sources.bak").write_text(DEB822)
    assert len(sources.of_host(tmp_path)) == 5


def test_a_mirror_list_is_followed(tmp_path: Path) -> None:
    listed = tmp_path / "mirrors.list"
    listed.write_text("# ours\nhttp://first.example/debian\nhttp://second.example/debian\n")
    (tmp_path / "sources.list").write_text(f"deb mirror+file:{listed} bookworm main\n")
    assert [source.uri for source in sources.of_host(tmp_path)] == ["http://first.example/debian"]


def test_each_suite_gets_the_mirror_that_names_it() -> None:
    found = sources.mirrors(SUITES, keyrings=(), sources=sources.parse_deb822(DEB822), environ={})
    assert found["bookworm"].uri == "http://mirror.example/debian/"
    assert found["bookworm-security"].uri == "http://mirror.example/debian-security"


def test_a_host_of_another_release_lends_its_mirror() -> None:
    trixie = [
        Source(uri="http://mirror.example/debian", suites=("trixie",)),
        Source(uri="http://mirror.example/debian-security", suites=("trixie-security",)),
    ]
    found = sources.mirrors(SUITES, keyrings=(), sources=trixie, environ={})
    assert found["bookworm"].uri == "http://mirror.example/debian"


def test_a_host_without_debian_sources_is_told_of_lab_mirror() -> None:
    ubuntu = [Source(uri="http://archive.example/ubuntu", suites=("noble",))]
    with pytest.raises(ImageError) as caught:
        sources.mirrors(SUITES, keyrings=(), sources=ubuntu, environ={})
    assert "LAB_MIRROR" in (caught.value.hint or "")


def test_lab_mirror_comes_first() -> None:
    one = sources.mirrors(
        SUITES,
        keyrings=(),
        sources=sources.parse_deb822(DEB822),
        environ={"LAB_MIRROR": "http://own.example/debian/"},
    )
    assert one["bookworm"].uri == "http://own.example/debian/"
    assert one["bookworm-security"].uri == "http://own.example/debian-security"
    two = sources.mirrors(
        SUITES,
        keyrings=(),
        sources=(),
        environ={"LAB_MIRROR": "http://own.example/debian http://other.example/sec"},
    )
    assert two["bookworm-security"].uri == "http://other.example/sec"


def test_a_pool_path_is_quoted_once() -> None:
    mirror = sources.Mirror(uri="http://mirror.example/debian/", keyring=None)
    assert "http://mirror.example/debian/pool/a_1%2bb_x.deb" == mirror.url("pool/a_1+b_x.deb")
