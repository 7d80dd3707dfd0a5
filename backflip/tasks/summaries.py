"""Everyday posts to sum up in one short sentence, and the true utility of a summary.

A prompt is a post and, below it, `REQUEST`. Knows how good a summary is by counting; knows nothing of models,
votes or rewards.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from backflip.core.records import Judged, Prompt
from backflip.tasks.prompt_file import load_prompt_file
from backflip.tasks.requests import COPIED_RUN, finished, sense
from backflip.tasks.rhyme import is_word
from backflip.tasks.task import Baseline, describe, merge_weights
from backflip.tasks.words import sentences, stem, words

REQUEST = "\n\nSum up this post in one short sentence."
"""What stands below the post in every prompt."""
CONTINUATION = "\n\nTL;DR:"
"""What stands below the post when a language model is to go on with it as plain text."""
MAX_TOKENS = 30
"""The longest summary, in tokens."""

WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"coverage": 1.5, "faithful": 1.0, "brevity": 0.75, "own_words": 0.75, "finished": 0.5}
)
"""What one whole attribute is worth. The value of a summary lies between 0 and their sum."""

MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "coverage": "how much of what the post says it holds: names and numbers count double, common words half",
        "faithful": "share of its numbers and names that stand in the post; half when it has none of them",
        "brevity": "8 to 22 words in one sentence: half at 4 or 31 words, half for each further sentence",
        "own_words": "not copied: 1 up to 8 words that stand in long runs of the post's own, 0 from 20",
        "finished": "came to its end: 1 stopped and closed, 0.5 stopped only, 0.25 closed only, 0 cut off",
    }
)
"""Each attribute in words."""

ENOUGH_SHARE = 0.3
"""A summary that holds this share of the post's weight has covered it."""
ENOUGH_WEIGHT = 14.0
"""So has one that holds this weight: about what twenty words can hold, however long the post."""
COMMON_SHARE = 0.05
"""A word of more than this share of the built-in posts is common: it counts half."""
PROSE_SHARE = 0.25
"""Share of little words (the, of, my …) from which a text counts as prose in full; a list of names has none."""
FEWEST_WORDS, MOST_WORDS = 8, 22
FEWEST_COPIED, MOST_COPIED = 8, 20

_LITTLE = """
    a about above across after again against ago all almost along already also although always am among an and any
    anybody anyone anything are aren't around as at away back be because been before behind being below between both
    but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each either else even
    ever every everybody everyone everything few for from further had hadn't has hasn't have haven't having he he'd
    he'll he's her here hers herself him himself his how however i i'd i'll i'm i've if in into is isn't it it'd
    it'll it's its itself just let's like made make many may maybe me might mine more most much must my myself near
    neither never no nobody none nor not nothing now of off often on once one only onto or other others our ours out
    over own perhaps per quite rather really s same shall she she'd she'll she's should shouldn't since so some
    somebody someone something still such than that that's the their theirs them themselves then there there's these
    they they'd they'll they're they've this those though through till to together too towards two under until up
    upon us very was wasn't we we'd we'll we're we've were weren't what what's when where which while who who's whom
    whose why will with within without won't would wouldn't yes yet you you'd you'll you're you've your yours
    st nd rd th pm oh ok mr mrs ms dr
"""
LITTLE_WORDS = frozenset(_LITTLE.split()) - {"two"}
"""Words that hold sentences together and say nothing about the subject."""

_UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SPELLED = {w: str(i) for i, w in enumerate([*_UNITS, *_TEENS], 1)} | {w: str(10 * i) for i, w in enumerate(_TENS, 2)}
_COMPOUND = re.compile(rf"\b({'|'.join(_TENS)})-({'|'.join(_UNITS)})\b", re.IGNORECASE)
_TOKEN = re.compile(r"(?P<number>\d+(?:[.,:]\d+)*)|[^\W\d_]+(?:['’][^\W\d_]+)*")
_THOUSANDS = re.compile(r",(?=\d{3}(?:\D|$))")


def load_summaries() -> list[Prompt]:
    """The built-in prompt set: 400 posts (200 train, 100 monitor, 100 final), each with the request to sum it up."""
    return [Prompt(id=row["id"], split=row["split"], text=row["post"] + REQUEST) for row in _rows()]


def load_post_file(path: Path) -> list[Prompt]:
    """A user's own posts, as `load_prompt_file` reads them; the request is put below each that lacks it.

    Raises: DataError naming file and line.
    """
    return [replace(p, text=post_of(p) + REQUEST) for p in load_prompt_file(path)]


def post_of(prompt: Prompt) -> str:
    """The bare post of a prompt, without the request to sum it up."""
    return prompt.text.removesuffix(REQUEST.strip()).strip()


def continued(prompt: Prompt) -> str:
    """The post and "TL;DR:", for a language model to go on with."""
    return post_of(prompt) + CONTINUATION


def first_sentence(text: str, ended: bool) -> tuple[str, bool]:
    """A continuation up to the end of its first sentence or line, and whether it came that far."""
    found = sentences(text)
    return (found[0], True) if len(found) > 1 else (text, ended)


ZERO_SHOT = Baseline(
    name="zero-shot",
    meaning='the first sentence with which the untouched model goes on after the post and "TL;DR:", as plain text',
    text=continued,
    finish=first_sentence,
)
"""Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 3.6 (three sentences)."""


class SummaryUtility:
    """How good a summary truly is: a weighted sum of five attributes, each in [0, 1].

    Every attribute is multiplied by `worth(...)`, so that an empty answer scores 0 on all of them, and
    gibberish or a bare list of names scores little. Deterministic; no model, no network.

    It counts and does not understand. What a policy could gain without summing up better:
    - Who did what to whom, and "not", are invisible: the post's words in any order are covered.
    - A list of facts strung on little words ("the depot and the coat at 140 with ...") passes as prose.
    - A number is faithful when it stands anywhere in the post, whatever it counts there; rounded ones and
      19:30 for "half past seven" are not. An invented name is missed as the first word of a sentence or in
      small letters; other inventions cost only the words they take.
    - Eight words may be copied, and more where each run stays below six.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """Take `weights` over the default ones, by attribute name; a weight of 0 leaves an attribute out.

        Raises: ConfigError for an unknown attribute or a weight that is negative or not finite.
        """
        self.weights: Mapping[str, float] = merge_weights(WEIGHTS, weights)
        self.names: tuple[str, ...] = tuple(self.weights)

    def judge(self, prompt: Prompt, text: str, ended: bool) -> Judged:
        """Value and attributes of the summary `text`; `ended` says that it came to the stop token."""
        post, said = post_of(prompt), words(text)
        scale = worth(post, said)
        raw = {
            "coverage": coverage(post, text),
            "faithful": faithful(post, text),
            "brevity": brevity(len(said)) * 0.5 ** max(0, len(sentences(text)) - 1),
            "own_words": own_words(post, said),
            "finished": finished("sentence", text, ended),
        }
        attributes = {name: scale * raw[name] for name in self.names}
        return Judged(value=sum(self.weights[n] * a for n, a in attributes.items()), attributes=attributes)

    def table(self) -> list[tuple[str, float, str]]:
        """(attribute, weight, meaning) for every attribute, in order: the utility as a report shows it."""
        return [(name, self.weights[name], MEANINGS[name]) for name in self.names]

    def describe(self) -> str:
        """The utility in words, one line an attribute, for a terminal or a report."""
        return describe(
            self.table(), "a summary", "each lowered for text that is not made of words, or is a mere list of them."
        )


def worth(post: str, said: list[str]) -> float:
    """How far the words `said` are prose at all, in [0, 1]; 1 for any ordinary sentence.

    The product of `sense`, which leaves out numbers and the post's own names, and of the share of little
    words, full from a quarter.
    """
    if not said:
        return 0.0
    known = _read(post).words
    plain = [w for w in said if is_word(w) or not (w.isdigit() or w in known)]
    little = sum(w in LITTLE_WORDS for w in said) / len(said)
    return sense(plain) * min(1.0, little / PROSE_SHARE)


def coverage(post: str, text: str) -> float:
    """Weight of the post's items that `text` holds, each once, over what is enough; in [0, 1].

    An item is a number or the stem of a word that is not little. It weighs 1; doubled for numbers and
    names, halved for common words, half as much again when the post says it more than once. Enough is
    30% of the post's weight, or 14.
    """
    weights = _read(post).weights
    enough = min(ENOUGH_SHARE * sum(weights.values()), ENOUGH_WEIGHT)
    held = sum(weights.get(key, 0.0) for key in {item.key for item in _items(text)})
    return min(1.0, held / enough) if enough else 0.0


def faithful(post: str, text: str) -> float:
    """Share of the distinct numbers and names in `text` that stand in the post, in [0, 1].

    Without any it is 0.5, or 1 when the post has none either. 3 and "three" are one number, and so are 7:30
    and 7.30. A name is a word with a capital that does not begin a sentence or a quotation; the post may hold
    it in any case.
    """
    known = _read(post)
    claimed = {item.key for item in _items(text) if item.fact}
    if not claimed:
        return 0.5 if known.facts else 1.0
    return sum(key in known.weights for key in claimed) / len(claimed)


def brevity(count: int) -> float:
    """1 for 8 to 22 words, falling along a cosine of the log-ratio to 0 at 2 and at 44 words."""
    if count <= 0:
        return 0.0
    if count < FEWEST_WORDS:
        away = math.log(FEWEST_WORDS / count) / math.log(4)
    else:
        away = max(0.0, math.log(count / MOST_WORDS) / math.log(2))
    return (1 + math.cos(math.pi * away)) / 2 if away < 1 else 0.0


def own_words(post: str, said: list[str]) -> float:
    """1 while at most 8 of the words `said` stand in runs copied from the post, falling evenly to 0 at 20.

    A run is six or more words in the post's order; several runs add up.
    """
    runs = _read(post).runs
    copied: set[int] = set()
    for i in range(len(said) - COPIED_RUN + 1):
        if tuple(said[i : i + COPIED_RUN]) in runs:
            copied.update(range(i, i + COPIED_RUN))
    return min(1.0, max(0.0, (MOST_COPIED - len(copied)) / (MOST_COPIED - FEWEST_COPIED)))


class _Item(NamedTuple):
    """One thing a text says."""

    key: str
    """A number in plain digits, or the stem of a word."""
    fact: bool
    """It is a number or a name."""


@dataclass(frozen=True)
class _Post:
    """What is counted of one post."""

    weights: Mapping[str, float]
    """Weight of each item, by key."""
    facts: frozenset[str]
    """The keys of its numbers and names."""
    words: frozenset[str]
    runs: frozenset[tuple[str, ...]]
    """Every run of COPIED_RUN words."""


@lru_cache(maxsize=4096)
def _read(post: str) -> _Post:
    """Everything that judging needs of `post`, computed once."""
    items = list(_items(post))
    counts = Counter(item.key for item in items)
    facts = frozenset(item.key for item in items if item.fact)
    common = _common()
    weights = {
        key: (2.0 if key in facts else 1.0) * (0.5 if key in common else 1.0) * (1.5 if count > 1 else 1.0)
        for key, count in counts.items()
    }
    said = words(post)
    runs = frozenset(tuple(said[i : i + COPIED_RUN]) for i in range(len(said) - COPIED_RUN + 1))
    return _Post(MappingProxyType(weights), facts, frozenset(said), runs)


def _items(text: str) -> Iterator[_Item]:
    """The numbers and the words that are not little, in order."""
    plain = _COMPOUND.sub(lambda m: str(int(_SPELLED[m[1].lower()]) + int(_SPELLED[m[2].lower()])), text)
    for token in _TOKEN.finditer(plain):
        word = token.group().lower().replace("’", "'")
        if token["number"]:
            yield _Item(_number(token["number"]), True)
        elif word in LITTLE_WORDS:
            continue
        elif word in _SPELLED:
            yield _Item(_SPELLED[word], True)
        else:
            yield _Item(stem(word), _is_name(plain, token))


def _number(digits: str) -> str:
    """One spelling for each number: "1,200" -> "1200", "07:30" and "7.30" -> "7.3", "8:00" -> "8"."""
    whole, *rest = re.split("[.,:]", _THOUSANDS.sub("", digits))
    whole = whole.lstrip("0") or "0"
    if len(rest) == 1:
        rest = [rest[0].rstrip("0")]
    return ".".join([whole, *filter(None, rest)])


def _is_name(text: str, token: re.Match[str]) -> bool:
    """Whether a word has one capital, in front, and goes on a sentence: after a word or a comma and a space."""
    word = token.group()
    if not word[0].isupper() or (len(word) > 1 and word.isupper()):
        return False
    before = text[max(0, token.start() - 2) : token.start()]
    return len(before) == 2 and before[1] == " " and (before[0].isalnum() or before[0] in ",;&)")


@lru_cache(maxsize=1)
def _common() -> frozenset[str]:
    """The items that more than a twentieth of the built-in posts hold."""
    posts = [row["post"] for row in _rows()]
    held = Counter(key for post in posts for key in {item.key for item in _items(post)})
    return frozenset(key for key, count in held.items() if count > COMMON_SHARE * len(posts))


@lru_cache(maxsize=1)
def _rows() -> tuple[dict[str, Any], ...]:
    """The lines of the built-in file, as they stand."""
    text = files("backflip.tasks").joinpath("summaries.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())
