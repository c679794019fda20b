"""The reader of BTF against what a compiler says of a struct's layout."""

from __future__ import annotations

import shutil
import struct
import subprocess

import pytest

from lab.btf import Btf
from lab.errors import EvidenceError

SOURCE = """
#include <stddef.h>
#include <stdio.h>

enum word { HELLO = 3, BYE = 70000 };
typedef struct inner { short c; char d[3]; } inner_t;
struct outer {
	int a;
	union { long b; struct { short c; char d[3]; }; };
	unsigned int f : 3, g : 7;
	const inner_t *p;
	inner_t deep[4];
	const volatile inner_t one;
	enum word w;
};
struct outer o;

int main(void)
{
	printf("%zu %zu %zu %zu %zu %zu %zu\\n", sizeof(o), offsetof(struct outer, d),
		offsetof(struct outer, p), offsetof(struct outer, deep),
		offsetof(struct outer, one.d), offsetof(struct outer, w), sizeof(o.deep));
	return 0;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """Return the BTF that gcc makes of SOURCE, and what the compiled program prints."""
    folder = tmp_path_factory.mktemp("btf")
    (folder / "a.c").write_text(SOURCE)
    gcc, objcopy = shutil.which("gcc"), shutil.which("objcopy")
    assert gcc, "expected gcc, which the project needs anyway"
    assert objcopy
    for words in (
        [gcc, "-gbtf", "-c", "a.c", "-o", "a.o"],
        [objcopy, "-O", "binary", "--only-section=.BTF", "--set-section-flags", ".BTF=alloc",
         "a.o", "a.btf"],
        [gcc, "a.c", "-o", "a"],
    ):  # fmt: skip
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    said = subprocess.run([folder / "a"], check=True, capture_output=True, text=True).stdout
    return (folder / "a.btf").read_bytes(), [int(word) for word in said.split()]


def test_layout_is_the_compilers(compiled: tuple[bytes, list[int]]) -> None:
    btf = Btf(compiled[0])
    deep = btf.field("outer.deep")
    found = [
        btf.size("outer"),
        btf.offset("outer.d"),  # in a struct in a union, both without a name
        btf.offset("outer.p"),
        deep.offset,
        btf.offset("outer.one.d"),  # through const, volatile and a typedef
        btf.offset("outer.w"),
        deep.size,
    ]
    assert compiled[1] == found


def test_bit_fields_enums_and_pointers(compiled: tuple[bytes, list[int]]) -> None:
    btf = Btf(compiled[0])
    f, g = btf.field("outer.f"), btf.field("outer.g")
    assert [(0, 3), (3, 7)] == [(f.shift, f.bits), (g.shift, g.bits)]
    assert f.offset == g.offset
    assert {"HELLO": 3, "BYE": 70000} == btf.enum("word")
    assert "inner" == btf.points_to("outer.p")
    assert ["a", "b", "c", "d", "f", "g", "p", "deep", "one", "w"] == [
        name for name, _ in btf.members("outer")
    ]
    assert btf.size("inner_t") == btf.size("inner")


def test_what_is_not_there_is_named(compiled: tuple[bytes, list[int]]) -> None:
    btf = Btf(compiled[0])
    assert btf.has("outer.d")
    assert not btf.has("outer.e")
    assert not btf.has("nothing")
    for path, text in (("outer.e", "'e'"), ("nothing.at", "'nothing'")):
        with pytest.raises(EvidenceError, match=text):
            btf.field(path)
    with pytest.raises(EvidenceError, match="no pointer"):
        btf.points_to("outer.a")
    with pytest.raises(EvidenceError, match="no type 'outer'"):
        btf.enum("outer")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda blob: blob[:10], "found 10"),
        (lambda blob: b"\xeb\x9f" + blob[2:], "expected magic"),
        (lambda blob: blob[:-1], "cut short"),
        (lambda blob: blob[:24] + struct.pack("<III", 0, 31 << 24, 0) + blob[36:], "kind 31"),
    ],
)
def test_what_is_no_btf_is_refused(
    compiled: tuple[bytes, list[int]], change: object, text: str
) -> None:
    assert callable(change)
    with pytest.raises(EvidenceError, match=text):
        Btf(change(compiled[0]))


def test_names_may_be_those_of_other_kinds() -> None:
    """See a struct found whose name a typedef of something else has too."""
    strings = b"\0both\0"
    types = struct.pack("<III", 1, 8 << 24, 2)  # typedef int both
    types += struct.pack("<IIII", 0, 1 << 24, 4, 32)  # int
    types += struct.pack("<III", 1, 4 << 24, 12)  # struct both
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    assert 12 == Btf(header + types + strings).size("both")
