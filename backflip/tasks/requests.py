"""Short everyday requests, and the true utility that simulated raters look at.

Knows how good an answer is by rules anybody can read; knows nothing of models, votes or rewards.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from backflip.core.records import Judged, Prompt
from backflip.tasks.rhyme import is_word, rhymes
from backflip.tasks.task import describe, merge_weights
from backflip.tasks.words import content_stems, lines, list_items, marked_items, sentences, stem, words

FORMS = ("sentence", "list", "couplet", "")
"""The forms a request may ask for; the empty one asks for none."""

WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"warmth": 1.5, "subject": 1.0, "form": 1.0, "once": 0.5, "finished": 0.5, "length": 0.75}
)
"""What one whole attribute is worth. The value of an answer lies between 0 and their sum."""

MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "warmth": "how friendly the words are: VADER's compound score, from 0 (hostile) to 1 (warm), 0.5 neutral",
        "subject": "share of the topic's words that it touches, each once; text copied from the request is not counted",
        "form": "the form that was asked for: one sentence, three items, a rhyming couplet, or else 1-3 sentences",
        "once": "says it once: 1 minus the share of repeated three-word runs or sentences, whichever is greater",
        "finished": "came to its end: 1 stopped and closed, 0.5 stopped only, 0.25 closed only, 0 cut off",
        "length": "words near the target: 1 at the target, half at 1.7 times too long or short, 0 at 3 times",
    }
)
"""Each attribute in words."""

TARGET_WORDS: Mapping[str, int] = MappingProxyType({"sentence": 16, "list": 18, "couplet": 14, "": 22})
"""The best number of words for each form."""

COPIED_RUN = 6
"""A run of this many words of the request, repeated in its order, is a copy and touches no topic."""
FARTHEST_RATIO = 3.0
"""The length attribute reaches 0 at this many times the target, or at the target divided by it."""


def load_requests() -> list[Prompt]:
    """The built-in prompt set: 564 requests (344 train, 110 monitor, 110 final), each with 2-4 topic words."""
    text = files("backflip.tasks").joinpath("requests.jsonl").read_text(encoding="utf-8")
    return [Prompt(**json.loads(line)) for line in text.splitlines()]


class RequestUtility:
    """How good an answer truly is: a weighted sum of six attributes, each in [0, 1].

    Every attribute is multiplied by `sense(...)`, so that an empty answer scores 0 on all of them and
    gibberish or one word said over and over scores little. Deterministic; no model, no network.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """Take `weights` over the default ones, by attribute name; a weight of 0 leaves an attribute out.

        Raises: ConfigError for an unknown attribute or a weight that is negative or not finite.
        """
        self.weights: Mapping[str, float] = merge_weights(WEIGHTS, weights)
        self.names: tuple[str, ...] = tuple(self.weights)
        self._vader = SentimentIntensityAnalyzer()

    def judge(self, prompt: Prompt, text: str, ended: bool) -> Judged:
        """Value and attributes of the answer `text`; `ended` says that it came to the stop token.

        Raises: ValueError when the prompt asks for a form that is not in `FORMS`.
        """
        if prompt.form not in FORMS:
            raise ValueError(f"prompt {prompt.id} asks for the form {prompt.form!r}, known are {FORMS}")
        said = words(text)
        worth = sense(said)
        raw = {
            "warmth": (1 + float(self._vader.polarity_scores(text)["compound"])) / 2,
            "subject": subject(prompt, said),
            "form": form(prompt.form, text),
            "once": once(said, text),
            "finished": finished(prompt.form, text, ended),
            "length": length(len(said), TARGET_WORDS[prompt.form]),
        }
        attributes = {name: worth * raw[name] for name in self.names}
        return Judged(value=sum(self.weights[n] * a for n, a in attributes.items()), attributes=attributes)

    def table(self) -> list[tuple[str, float, str]]:
        """(attribute, weight, meaning) for every attribute, in order: the utility as a report shows it."""
        return [(name, self.weights[name], MEANINGS[name]) for name in self.names]

    def describe(self) -> str:
        """The utility in words, one line an attribute, for a terminal or a report."""
        return describe(
            self.table(), "an answer", "each lowered for text that is not made of words, or of very few different ones."
        )


def sense(said: list[str]) -> float:
    """How far the words `said` are a text at all, in [0, 1]; 1 for all ordinary text.

    The product of: the share of words that an English dictionary knows (full from 80%), the share of
    different words (full from half), the number of different words (full from 4).
    """
    if not said:
        return 0.0
    different = set(said)
    known = sum(1 for w in said if is_word(w)) / len(said)
    return min(1.0, known / 0.8) * min(1.0, len(different) / len(said) / 0.5) * min(1.0, len(different) / 4)


def subject(prompt: Prompt, said: list[str]) -> float:
    """Share of the topic's words that `said` touches (equal stems), in [0, 1].

    Each counts once, however often it is said. Words inside a run of six or more words copied from the
    request do not count. A prompt without a topic is judged by the content words of its text: three of
    them (or all, if fewer) are enough.
    """
    runs, topic = _request_words(prompt.text, prompt.topic)
    if not topic:
        return 0.0
    copied: set[int] = set()
    for i in range(len(said) - COPIED_RUN + 1):
        if tuple(said[i : i + COPIED_RUN]) in runs:
            copied.update(range(i, i + COPIED_RUN))
    own = {stem(w) for i, w in enumerate(said) if i not in copied}
    enough = len(topic) if prompt.topic else min(3, len(topic))
    return min(1.0, sum(1 for t in topic if t in own) / enough)


@lru_cache(maxsize=4096)
def _request_words(text: str, topic: str) -> tuple[frozenset[tuple[str, ...]], tuple[str, ...]]:
    """Every run of COPIED_RUN words of the request, and the stems an answer ought to touch."""
    asked = words(text)
    runs = frozenset(tuple(asked[i : i + COPIED_RUN]) for i in range(len(asked) - COPIED_RUN + 1))
    return runs, tuple(dict.fromkeys(stem(w) for w in words(topic))) or content_stems(text)


def form(asked: str, text: str) -> float:
    """How well `text` keeps the form `asked`, in [0, 1]; each step away from it halves the score.

    sentence: one sentence of at least 4 words; a line of its own counts as a sentence.
    list: three different items, see `words.list_items`; no list scores 0, a list of one 0.25.
    couplet: half for two lines, half for a rhyme of the first two (a quarter when there are more lines).
    none asked: one to three sentences of plain prose; a numbered or bulleted list halves the score.
    """
    if asked == "sentence":
        return float(0.5 ** (len(sentences(text)) - 1) * min(1.0, len(words(text)) / 4))
    if asked == "list":
        count = len(list_items(text))
        return float(0.5 ** abs(count - 3)) if count else 0.0
    if asked == "couplet":
        return _couplet(lines(text))
    plain = 0.5 if marked_items(text) else 1.0
    return float(plain * 0.5 ** max(0, len(sentences(text)) - 3))


def _couplet(verses: list[str]) -> float:
    shape = 0.5 * 0.5 ** abs(len(verses) - 2)
    if len(verses) < 2:
        return shape
    first, second = (words(v)[-1] for v in verses[:2])
    rhyme = 0.5 if len(verses) == 2 else 0.25
    return shape + (rhyme if rhymes(first, second) else 0.0)


def once(said: list[str], text: str) -> float:
    """1 minus the share of repeated 3-word runs or of repeated sentences, whichever is greater."""
    runs = [tuple(said[i : i + 3]) for i in range(len(said) - 2)]
    whole = [tuple(words(s)) for s in sentences(text)]
    return 1 - max(_repeated(runs), _repeated(whole))


def _repeated(parts: list[tuple[str, ...]]) -> float:
    """Share of `parts` that were there before, in [0, 1)."""
    return 1 - len(set(parts)) / len(parts) if parts else 0.0


def finished(asked: str, text: str, ended: bool) -> float:
    """1 when the answer stopped by itself and is closed; 0.5 stopped only; 0.25 closed only; 0 cut off.

    Closed: the last character is . ! ? or …, closing quotes, brackets and asterisks aside; an item of a
    list that was asked for needs none.
    """
    closed = text.rstrip(" \t\r\n\"'”’)]*").endswith((".", "!", "?", "…"))
    if ended and not closed and asked == "list":
        closed = len(list_items(text)) > 1
    if ended:
        return 1.0 if closed else 0.5
    return 0.25 if closed else 0.0


def length(count: int, target: int) -> float:
    """1 at `target` words, falling along a cosine of the log-ratio to 0 at 3 times too many or too few."""
    if count == 0:
        return 0.0
    away = abs(math.log(count / target)) / math.log(FARTHEST_RATIO)
    return (1 + math.cos(math.pi * away)) / 2 if away < 1 else 0.0
