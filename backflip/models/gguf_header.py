"""Walk the header of a GGUF file before anything is built from it, so that a broken file is refused at once.

The `gguf` package believes every length it reads: a damaged one makes it loop for hours. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from backflip.core.errors import DataError

READABLE = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q5_1", "Q4_K", "Q4_0", "Q4_1", "Q3_K", "Q2_K", "IQ4_NL",
    "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
"""The types of tensors that can be dequantised."""
STRING, ARRAY = 8, 9
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of each plain type."""
MOST_ENTRIES = 1 << 22
"""Entries of an array: some ten times the largest vocabularies."""
MOST_DIMENSIONS = 4


class Malformed(Exception):
    """What is wrong with the bytes; never leaves this module."""


def check_header(path: Path) -> None:
    """Read every key and every tensor's place, within the file's own length.

    Raises: DataError when the file is no whole GGUF file of version 2 or 3, or a tensor's type cannot be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data, path).header()
    except (Malformed, OSError, ValueError) as e:  # ValueError: an empty file cannot be mapped
        raise DataError(
            f"{path} cannot be read as a GGUF file: {e}.\n"
            "The download may be incomplete, or the file is damaged or something else.\n"
            "Fetch it again: a GGUF file begins with the letters GGUF."
        ) from e


class _Walk:
    """A place in the file that moves forward and never beyond its end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at, self.end = data, path, 0, len(data)

    def skip(self, count: int) -> int:
        """Move on by `count` bytes; where they begin."""
        start = self.at
        if count > self.end - start:
            raise Malformed(f"it ends in the middle of its header, after {self.end:,} bytes")
        self.at = start + count
        return start

    def number(self, code: str) -> int:
        """An unsigned number: "I" has 4 bytes, "Q" has 8."""
        return int(struct.unpack_from(f"<{code}", self.data, self.skip(struct.calcsize(code)))[0])

    def name(self) -> str:
        """A string, which must be UTF-8."""
        size = self.number("Q")
        start = self.skip(size)
        try:
            return self.data[start : start + size].decode("utf-8")
        except UnicodeDecodeError as e:
            raise Malformed(f"the name at byte {start:,} is no UTF-8") from e

    def header(self) -> None:
        """Everything before the weights, and whether the file holds them all."""
        if self.data[: self.skip(4) + 4] != b"GGUF":
            raise Malformed("it does not begin as one")
        version = self.number("I")
        if version not in (2, 3):
            raise Malformed(f"its version is {version}, and only 2 and 3 (little-endian) are known")
        tensors, keys = self.number("Q"), self.number("Q")
        alignment, seen = 32, set()
        for _ in range(keys):
            key = self.name()
            if key in seen:
                raise Malformed(f"it gives {key} twice")
            seen.add(key)
            kind = self.number("I")
            if key == "general.alignment":
                alignment = self.number("I") if kind == 4 else 0
                if alignment < 1 or alignment & (alignment - 1):
                    raise Malformed("its alignment is no power of two")
            else:
                self.value(kind)
        self.tensors(tensors, alignment)

    def value(self, kind: int) -> None:
        """Pass over one value."""
        if kind in WIDTHS:
            self.skip(WIDTHS[kind])
        elif kind == STRING:
            self.skip(self.number("Q"))
        elif kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if count > MOST_ENTRIES:
                raise Malformed(f"it announces an array of {count:,} entries")
            if kind in WIDTHS:
                self.skip(WIDTHS[kind] * count)
            elif kind == STRING:
                for _ in range(count):
                    self.skip(self.number("Q"))
            else:
                raise Malformed(f"an array's type {kind} is not known")
        else:
            raise Malformed(f"the type {kind} at byte {self.at - 4:,} is not known")

    def tensors(self, count: int, alignment: int) -> None:
        """Pass over the list of tensors; every one must lie within the file."""
        places, seen = [], set()
        for _ in range(count):
            name, dimensions = self.name(), self.number("I")
            if name in seen:
                raise Malformed(f"it lists the tensor {name} twice")
            seen.add(name)
            if not 1 <= dimensions <= MOST_DIMENSIONS:
                raise Malformed(f"its tensor {name} has {dimensions} dimensions")
            shape = [self.number("Q") for _ in range(dimensions)]
            places.append((name, self._bytes(name, shape, self.number("I")), self.number("Q")))
        start = -(-self.at // alignment) * alignment
        for name, size, offset in places:
            if offset % alignment:
                raise Malformed(f"its tensor {name} lies at an odd place")
            if start + offset + size > self.end:
                raise Malformed(
                    f"its tensor {name} ends at byte {start + offset + size:,}, and the file has {self.end:,}"
                )

    def _bytes(self, name: str, shape: list[int], kind: int) -> int:
        """Bytes of a tensor. Raises: DataError for a type that is not read here."""
        known = {int(t): t for t in GGMLQuantizationType}
        if kind not in known or known[kind].name not in READABLE:
            label = known[kind].name if kind in known else f"number {kind}"
            raise DataError(
                f"{self.path} keeps its tensor {name} as {label}, which is not read here.\n"
                "It may be a rare or a very new way to quantise, or the file is damaged.\n"
                f"Give a file whose tensors are {', '.join(READABLE[:-1])} or {READABLE[-1]}."
            )
        block, width = GGML_QUANT_SIZES[known[kind]]
        count = 1
        for n in shape:
            count *= n
        if not count or shape[0] % block:
            raise Malformed(f"its tensor {name} of shape {tuple(shape)} holds no whole blocks of {block}")
        return count // block * width
