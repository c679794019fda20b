"""Let atheris look for bytes that break a reader.

    pip install atheris        # in an environment of its own: nothing else needs it
    python tests/fuzz/readers.py CORPUS [-max_total_time=3600] [libFuzzer's other options]

CORPUS is a folder, filled on the first run with what the readers like.  The first byte of an
input chooses the reader.  What breaks one is written to a file crash-…; copied to
tests/unit/hostile_cases/READER.NUMBER (without its first byte, -- for /), it is tried for good.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import atheris

with atheris.instrument_imports(include=["lab"]):
    from tests.unit.hostile import readers


def main() -> None:
    """Fill the corpus, then fuzz until libFuzzer's options say to stop."""
    eaters = readers(Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm")))
    names = sorted(eaters)
    print("\n".join(f"{number:3} {name}" for number, name in enumerate(names)))
    corpus = Path(next(word for word in sys.argv[1:] if not word.startswith("-")))
    corpus.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        (corpus / name.replace("/", "--")).write_bytes(bytes([number]) + eaters[name].likes)

    def one(data: bytes) -> None:
        if data:
            eaters[names[data[0] % len(names)]].eat(data[1:])

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
