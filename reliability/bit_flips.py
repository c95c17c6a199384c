"""Single flipped bits in a ``.nii.gz``: refused, or provably without meaning.

::

    python reliability/bit_flips.py [FILE.nii.gz] [--flips N] [--seed S]

Without a file, a phantom of 2 mm is simulated. N flips are drawn evenly over all bits of the file, and every bit of
the gzip header, the trailer and the last bytes of the deflate stream is tried besides. A flipped file is refused with
a code of the family ``IN_``, or it is read to voxels that are bit for bit those of the whole file; any other outcome
breaks the promise.

Why not every flip is refused: some bits carry nothing. RFC 1952 lets the time stamp, the extra flags, the operating
system, the text flag and the file's name have any value. In the deflate stream (RFC 1951) the last byte is filled up
with bits that nobody reads, and inside a run of equal bytes a copy from one byte further back copies the same. The
checksum then still fits, because it is of the voxels, and they are unharmed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import Tally, report

HEADER, TRAILER, LAST = 10, 8, 4
FNAME = 8


def phantom_file(folder: Path) -> Path:
    """A simulated head of 2 mm as codebrain writes it."""
    from codebrain.data.phantom import write_phantom

    return write_phantom(folder, subjects=1, seed=0, spacing_mm=2.0)[0] / "T1.nii.gz"


def header_size(content: bytes) -> int:
    """Bytes of a gzip header that has at most the file's name as an optional field."""
    if content[3] not in (0, FNAME):
        raise SystemExit("give a file whose gzip header has no optional fields but the file's name")
    return HEADER if content[3] == 0 else content.index(0, HEADER) + 1


def part_of(bit: int, header: int, size: int) -> str:
    """What a bit of a gzip member belongs to."""
    byte = bit // 8
    if byte < HEADER:
        fields = {0: "ID", 1: "ID", 2: "CM", 3: "FLG: text" if bit % 8 == 0 else "FLG: others", 8: "XFL", 9: "OS"}
        return fields.get(byte, "MTIME")
    return "FNAME" if byte < header else "trailer" if byte >= size - TRAILER else "stream"


class Flipper:
    """Reads a copy of a file with one bit changed at a time.

    Args:
        file: a ``.nii.gz`` with one gzip member.
        folder: for the copy.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        from codebrain.imaging.volume import read_volume

        self.content = bytearray(file.read_bytes())
        self.header = header_size(bytes(self.content))
        self.copy = folder / "flipped.nii.gz"
        self.copy.write_bytes(self.content)
        self.whole = read_volume(self.copy)

    @property
    def bits(self) -> int:
        """Of the file."""
        return 8 * len(self.content)

    def part(self, bit: int) -> str:
        """What a bit belongs to."""
        return part_of(bit, self.header, len(self.content))

    def outcome(self, bit: int) -> str:
        """The code that the file with this bit flipped is refused with; ``same`` or ``DIFFERENT`` when it is read."""
        from codebrain.errors import CodeBrainError
        from codebrain.imaging.volume import read_volume

        place = bit // 8
        with self.copy.open("r+b") as stream:
            stream.seek(place)
            stream.write(bytes([self.content[place] ^ (1 << bit % 8)]))
        try:
            volume = read_volume(self.copy)
        except CodeBrainError as error:
            return error.code
        finally:
            with self.copy.open("r+b") as stream:
                stream.seek(place)
                stream.write(self.content[place : place + 1])
        same = volume.data.tobytes() == self.whole.data.tobytes() and np.array_equal(volume.affine, self.whole.affine)
        return "same" if same else "DIFFERENT"


def random_bits(flipper: Flipper, count: int, seed: int) -> list[int]:
    """Bits drawn evenly over the whole file, none twice."""
    drawn: list[int] = np.random.default_rng(seed).choice(flipper.bits, count, replace=False).tolist()
    return drawn


def frame_bits(flipper: Flipper) -> list[int]:
    """Every bit of header, trailer and the last bytes of the stream."""
    return [*range(8 * flipper.header), *range(flipper.bits - 8 * (TRAILER + LAST), flipper.bits)]


def flips(flipper: Flipper, bits: list[int], promise: str) -> tuple[Tally, dict[str, Counter[str]]]:
    """Flip each bit in turn; the tally, and the outcomes by part of the file."""
    tally, outcomes = Tally(promise), dict[str, Counter[str]]()
    for bit in bits:
        outcome, part = flipper.outcome(bit), flipper.part(bit)
        outcomes.setdefault(part, Counter())[outcome] += 1
        tally.add(f"bit {bit} ({part})", [] if outcome == "same" or outcome.startswith("IN_") else [outcome])
    return tally, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="a .nii.gz; a phantom by default")
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flipper = Flipper(arguments.file or phantom_file(Path(folder) / "phantom"), Path(folder))
        begun = time.perf_counter()
        anywhere = flips(flipper, random_bits(flipper, arguments.flips, arguments.seed), "one bit flipped anywhere")
        frame = flips(flipper, frame_bits(flipper), "every bit of gzip's header, trailer and last bytes flipped")
        seconds = time.perf_counter() - begun
    print(f"{flipper.bits // 8:,} bytes, {seconds:.0f} s")
    for tally, parts in (anywhere, frame):
        refused = sum(count for outcomes in parts.values() for code, count in outcomes.items() if code != "same")
        print(f"{tally.promise}: {tally.tried} tried, {refused} refused, {tally.tried - refused} read")
        for part, outcomes in parts.items():
            print(f"  {part}: {', '.join(f'{code} {count}' for code, count in outcomes.most_common())}")
    return report([anywhere[0], frame[0]])


if __name__ == "__main__":
    sys.exit(main())
