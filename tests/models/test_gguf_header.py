"""A GGUF file that is broken anywhere is refused at once, in plain words."""

import random
import re
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SPECIAL, hf_model
from tiny_gguf import write
from transformers import PreTrainedTokenizerFast

from backflip.core.errors import BackflipError, DataError
from backflip.models import gguf as module
from backflip.models.gguf import convert_gguf
from backflip.models.gguf_header import READABLE, check_header


def header(*, version: int = 3, tensors: int = 0, keys: bytes = b"", count: int = 0, rest: bytes = b"") -> bytes:
    """A GGUF file by hand."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + keys + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tensor(name: str, shape: list[int], kind: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def saved(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "m.gguf").write_bytes(content)
    return tmp_path / "m.gguf"


def test_a_whole_file_is_accepted(tmp_path: Path):
    keys = text("general.alignment") + struct.pack("<II", 4, 64) + text("a") + struct.pack("<IIQ", 9, 8, 1) + text("x")
    listed = header(tensors=1, count=2, keys=keys, rest=tensor("w", [32, 2], 8))  # 2 blocks of Q8_0: 34 bytes each

    check_header(saved(tmp_path, listed.ljust(192, b"\0") + bytes(68)))  # the list ends at byte 134: 128 < 134 <= 192


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (header(version=1), "its version is 1"),
        (header(version=3 << 24), "its version is 50331648"),  # big-endian
        (header(count=1, keys=text("a") + struct.pack("<I", 13)), "the type 13 at byte 33 is not known"),
        (header(count=1, keys=text("a") + struct.pack("<IIQ", 9, 0, 1 << 40)), "array of 1,099,511,627,776 entries"),
        (header(count=1, keys=text("a") + struct.pack("<IIQ", 9, 0, 1 << 20)), "ends in the middle of its header"),
        (header(count=1, keys=text("a") + struct.pack("<IIQ", 9, 9, 1)), "an array's type 9 is not known"),
        (header(count=1 << 60), "ends in the middle of its header"),
        (header(count=2, keys=(text("a") + struct.pack("<IB", 0, 0)) * 2), "gives a twice"),
        (header(count=1, keys=text("general.alignment") + struct.pack("<II", 4, 3)), "alignment is no power of two"),
        (header(count=1, keys=struct.pack("<QB", 1, 255)), "no UTF-8"),
        (header(tensors=1, rest=tensor("w", [], 0)), "tensor w has 0 dimensions"),
        (header(tensors=1, rest=tensor("w", [0], 0)), "holds no whole blocks"),
        (header(tensors=1, rest=tensor("w", [31], 8)), "holds no whole blocks of 32"),
        (header(tensors=1, rest=tensor("w", [1], 0, 1)), "lies at an odd place"),
        (header(tensors=2, rest=tensor("w", [1], 0) * 2), "lists the tensor w twice"),
        # 24 bytes of header, 33 of list, so the weights begin at byte 64 and end 2^42 later
        (header(tensors=1, rest=tensor("w", [1 << 40], 0)), "ends at byte 4,398,046,511,168, and the file has 57"),
    ],
)
def test_what_is_broken_is_said(content: bytes, why: str, tmp_path: Path):
    with pytest.raises(DataError, match=re.escape(why)) as caught:
        check_header(saved(tmp_path, content))
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize(("kind", "name"), [(15, "Q8_K"), (26, "I32"), (4, "number 4"), (99, "number 99")])
def test_a_way_to_quantise_that_is_not_read_is_named_with_those_that_are(kind: int, name: str, tmp_path: Path):
    with pytest.raises(DataError, match=rf"its tensor w as {name}, .*\n.*\n.*F32, F16, BF16, Q8_0, .* or MXFP4"):
        check_header(saved(tmp_path, header(tensors=1, rest=tensor("w", [256], kind))))


@pytest.mark.parametrize("name", READABLE)
def test_every_type_that_is_accepted_can_be_dequantised(name: str):
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[name]
    block, width = GGML_QUANT_SIZES[kind]
    assert dequantize(np.zeros((2, 4 * width), dtype=np.uint8), kind).shape == (2, 4 * block)


CASES = 750
TINY: dict[str, Any] = {
    "layers": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocabulary": 24,
}
WORDS = [*SPECIAL, *"ab12cdefghijklmn", "ab", "12"]
NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    9,
    12,
    13,
    31,
    127,
    255,
    1 << 15,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
]


def places(content: bytes) -> list[int]:
    """Where the header's own structure is: around every key, tensor name and in the first bytes."""
    found = [m.start() for m in re.finditer(rb"general\.|llama\.|tokenizer\.|blk\.|output|token_embd", content)]
    return [*range(24), *(p + d for p in found for d in range(-12, 48))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("whole") / "m.gguf", hf_model("llama", **TINY), tokens=WORDS).read_bytes()


@pytest.fixture(scope="module")
def ready_tokenizer() -> PreTrainedTokenizerFast:
    from tiny import tokenizer

    return tokenizer()


def damage(content: bytes, seed: int, spots: list[int]) -> bytes:
    """One to three faults: a number or bit in the header changed, bytes cut out or in, or the end missing."""
    rng, data = random.Random(seed), bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.choice(spots) if rng.random() < 0.9 else rng.randrange(len(data))
        fault = rng.randrange(6)
        if fault == 0:
            data[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
        elif fault == 1:
            data[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
        elif fault in (2, 3) and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif fault == 4:
            data[at : at + rng.randint(0, 9)] = rng.randbytes(rng.randint(0, 9))
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def attempt(file: Path) -> str:
    """Whether the file is read or refused; anything else goes through."""
    try:
        convert_gguf(file)
    except BackflipError as e:
        if str(e).count("\n") != 2:
            raise AssertionError(f"no three lines: {e}") from e
        return "refused"
    return "success"


@pytest.fixture
def spent() -> dict[str, float]:
    return {"success": 0, "refused": 0, "slowest": 0.0}


def test_damaged_files_are_refused_or_read_and_nothing_else(
    whole: bytes,
    ready_tokenizer: PreTrainedTokenizerFast,
    spent: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("BACKFLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_tokenizer", lambda facts, words, path: ready_tokenizer)  # its own test is below
    spots = places(whole)

    @settings(max_examples=CASES)
    @given(seed=st.integers(0, 2**62))
    def case(seed: int) -> None:
        started = time.perf_counter()
        outcome = attempt(saved(tmp_path, damage(whole, seed, spots)))
        spent[outcome] += 1
        spent["slowest"] = max(spent["slowest"], time.perf_counter() - started)

    case()
    assert spent["success"] + spent["refused"] >= CASES
    assert min(spent["success"], spent["refused"]) > CASES / 20  # both ways are walked
    assert spent["slowest"] < 2


def test_damaged_words_are_refused_or_read_and_nothing_else(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BACKFLIP_CACHE", str(tmp_path / "cache"))
    first = whole.index(b"tokenizer.ggml.model")
    spots = list(range(first, whole.index(b"token_embd")))

    @settings(max_examples=40)
    @given(seed=st.integers(0, 2**62))
    def case(seed: int) -> None:
        attempt(saved(tmp_path, damage(whole, seed, spots)))

    case()
