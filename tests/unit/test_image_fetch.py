"""Packages are what the lock says or are refused; drift goes to the nearest newer one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab.errors import ImageError
from lab.image import fetch, resolve
from lab.image.apt import Offer, Wanted, parse_index
from lab.image.lock import Lock
from lab.image.recipe import Recipe, Series, Suite
from lab.journal import Journal

RECIPE = Recipe(
    architecture="amd64",
    keyrings=(),
    suites={"stable": Suite(archive="main", components=("main",))},
    series={"6.12": Series(image="linux-image-6.12-amd64", headers="linux-headers-6.12-amd64")},
    boot_modules=(),
    more_modules=(),
    userland={"tool": {}},
    libraries=("libfoo",),
    links={},
    files={},
    folders={},
)


def content(pool: str) -> bytes:
    return f"content of {pool}".encode()


def offer(name: str, version: str, depends: str = "") -> Offer:
    pool = f"pool/main/{name}_{version}_amd64.deb"
    return Offer(
        name=name,
        version=version,
        suite="stable",
        pool=pool,
        sha256=hashlib.sha256(content(pool)).hexdigest(),
        size=len(content(pool)),
        depends=depends,
    )


def kernel(number: int) -> list[Offer]:
    version, name = f"6.12.{number}-1", f"6.12.{number}"
    return [
        offer("linux-image-6.12-amd64", version, f"linux-image-{name}-amd64 (= {version})"),
        offer("linux-headers-6.12-amd64", version, f"linux-headers-{name}-amd64 (= {version})"),
        offer(f"linux-image-{name}-amd64", version, "kmod, initramfs-tools | other"),
        offer(
            f"linux-headers-{name}-amd64",
            version,
            f"linux-headers-{name}-common (= {version}), linux-kbuild-{name}, gcc-12",
        ),
        offer(f"linux-headers-{name}-common", version),
        offer(f"linux-kbuild-{name}", version),
    ]


class Shop:
    """A mirror in memory that counts what is asked of it."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        self.stock = list(offers)
        self.spoiled: dict[str, int] = {}  # pool path -> how many times it comes out wrong
        self.asked: list[str] = []
        self.indexes = 0

    def download(self, wanted: Sequence[Wanted]) -> set[str]:
        served = {one.pool for one in self.stock}
        gone = set()
        for one in wanted:
            self.asked.append(one.pool)
            if one.pool not in served:
                gone.add(one.pool)
            elif self.spoiled.get(one.pool, 0) > 0:
                self.spoiled[one.pool] -= 1
                one.target.write_bytes(b"something else")
            else:
                one.target.write_bytes(content(one.pool))
        return gone

    def offers(self) -> list[Offer]:
        self.indexes += 1
        return self.stock


OLD = [*kernel(9), offer("tool", "1.0-1"), offer("libfoo", "2.0-1")]
LOCK = resolve.newest("6.12", recipe=RECIPE, offers=OLD)


def gather(
    folder: Path, shop: Shop, *, lock: Lock = LOCK, locked: bool = False, offline: bool = False
) -> fetch.Gathered:
    return fetch.gather(
        lock,
        recipe=RECIPE,
        folder=folder,
        market=lambda: shop,
        journal=Journal(),
        locked=locked,
        offline=offline,
    )


def test_the_newest_is_pinned_with_its_own_headers() -> None:
    offers = [*kernel(9), *kernel(117), *kernel(20), *OLD[-2:], offer("tool", "1.0-2")]
    found = {
        one.name: one.role for one in resolve.newest("6.12", recipe=RECIPE, offers=offers).packages
    }
    assert found == {
        "linux-image-6.12.117-amd64": "kernel",
        "linux-headers-6.12.117-amd64": "headers",
        "linux-headers-6.12.117-common": "headers",
        "linux-kbuild-6.12.117": "headers",
        "tool": "userland",
        "libfoo": "userland",
    }


def test_a_kernel_without_its_headers_is_passed_over() -> None:
    lame = [one for one in kernel(117) if one.name != "linux-kbuild-6.12.117"]
    found = resolve.newest("6.12", recipe=RECIPE, offers=[*OLD, *lame])
    assert found.packages[0].version == "6.12.9-1"


def test_a_package_nobody_offers_is_said() -> None:
    with pytest.raises(ImageError, match="no suite offers libfoo"):
        resolve.newest("6.12", recipe=RECIPE, offers=[*kernel(9), offer("tool", "1")])


def test_what_is_missing_is_fetched_and_verified(tmp_path: Path) -> None:
    shop = Shop(OLD)
    found = gather(tmp_path, shop)
    assert found.drifted == ()
    assert len(shop.asked) == len(LOCK.packages)
    for package in LOCK.packages:
        assert content(package.pool) == found.files[package.name].read_bytes()
    assert shop.indexes == 0


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    gather(tmp_path, Shop(OLD))
    shop = Shop([])
    gather(tmp_path, shop, offline=True)
    assert shop.asked == []


def test_a_corrupt_file_is_found_said_and_fetched_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = gather(tmp_path, Shop(OLD))
    path = found.files["tool"]
    path.write_bytes(b"X" + path.read_bytes()[1:])
    shop = Shop(OLD)
    gather(tmp_path, shop)
    assert shop.asked == [LOCK.packages[-2].pool]
    assert path.read_bytes() == content(shop.asked[0])
    said = capsys.readouterr().err
    assert LOCK.packages[-2].sha256 in said
    assert hashlib.sha256(b"X" + content(shop.asked[0])[1:]).hexdigest() in said


def test_a_wrong_download_is_fetched_once_more(tmp_path: Path) -> None:
    shop = Shop(OLD)
    pool = LOCK.packages[0].pool
    shop.spoiled[pool] = 1
    gather(tmp_path, shop)
    assert shop.asked.count(pool) == 2


def test_a_download_wrong_twice_says_both_digests(tmp_path: Path) -> None:
    shop = Shop(OLD)
    shop.spoiled[LOCK.packages[0].pool] = 2
    with pytest.raises(ImageError) as caught:
        gather(tmp_path, shop)
    assert LOCK.packages[0].sha256 in str(caught.value)
    assert hashlib.sha256(b"something else").hexdigest() in str(caught.value)
    assert caught.value.exit_code == 3
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]
    assert not (tmp_path / LOCK.packages[0].filename).exists()


def test_offline_refuses_what_is_not_there(tmp_path: Path) -> None:
    shop = Shop(OLD)
    with pytest.raises(ImageError, match=r"offline.*tool 1\.0-1"):
        gather(tmp_path, shop, offline=True)
    assert shop.asked == []


def test_a_package_drifts_to_the_nearest_newer_one(tmp_path: Path) -> None:
    newer = [offer("tool", version) for version in ("0.9-1", "1.0-3", "1.0-2", "2.0-1")]
    shop = Shop([*kernel(9), OLD[-1], *newer])
    found = gather(tmp_path, shop)
    assert found.drifted == ("tool: locked 1.0-1, got 1.0-2",)
    assert content(newer[2].pool) == found.files["tool"].read_bytes()


def test_a_kernel_drifts_with_its_headers(tmp_path: Path) -> None:
    shop = Shop([*kernel(8), *kernel(20), *kernel(12), *OLD[-2:]])
    found = gather(tmp_path, shop)
    assert found.drifted == (
        "linux-image-6.12.9-amd64: locked 6.12.9-1, got 6.12.12-1 (linux-image-6.12.12-amd64)",
    )
    versions = {one.version for one in found.lock.packages if one.role != "userland"}
    assert versions == {"6.12.12-1"}


def test_headers_gone_take_the_kernel_along(tmp_path: Path) -> None:
    left = [one for one in kernel(9) if one.name != "linux-kbuild-6.12.9"]
    found = gather(tmp_path, Shop([*left, *kernel(10), *OLD[-2:]]))
    assert found.lock.packages[0].name == "linux-image-6.12.10-amd64"


def test_locked_refuses_to_drift(tmp_path: Path) -> None:
    shop = Shop([*kernel(12), *OLD[-2:]])
    with pytest.raises(ImageError, match=r"no longer served: linux-image-6\.12\.9"):
        gather(tmp_path, shop, locked=True)
    assert shop.indexes == 0


def test_only_older_ones_are_no_drift(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nor is a newer one"):
        gather(tmp_path / "a", Shop([*kernel(9), OLD[-1], offer("tool", "0.9-1")]))
    with pytest.raises(ImageError, match="newer than"):
        gather(tmp_path / "b", Shop([*kernel(8), *OLD[-2:]]))


def test_an_index_is_read_stanza_by_stanza() -> None:
    text = (
        "Package: tool\nVersion: 1:2-3\nFilename: pool/t.deb\nSize: 7\nSHA256: ab\n"
        "Depends: libc6 (>= 2)\nDescription: x\n more: than this\n\nPackage: lame\nVersion: 1\n\n"
    )
    (found,) = parse_index(text, suite="stable")
    assert ("tool", "1:2-3", "pool/t.deb", 7, "libc6 (>= 2)") == (
        found.name,
        found.version,
        found.pool,
        found.size,
        found.depends,
    )
