"""Words, stems, sentences and list items of a short English text. Knows nothing about prompts or scores."""

import re
import threading
from functools import lru_cache

import snowballstemmer

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]*]*\s+")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|vs|e\.g|i\.e|etc|[ap]\.m)\.$", re.IGNORECASE)
_MARKER = re.compile(r"^\s*(?:[-*•–+]\s+|\(?\d{1,2}[.):](?!\d)\s*|\(?[a-cA-C][.)]\s+)")
_INLINE_NUMBER = re.compile(r"(?:^|(?<=\s))\(?\d{1,2}[.)]\s+(?=\S)")
_COMMA_OR_AND = re.compile(r"\s*[,;]\s*(?:(?:and|or|&)\s+)?|\s+(?:and|or|&)\s+")
_ENGLISH = snowballstemmer.stemmer("english")
_STEMMING = threading.Lock()
LONGEST_COMMA_ITEM = 8
"""Words an item of a list written with commas may have; longer ones are clauses."""

_STOP = """
    a about after again all am an and any are as ask at be because been before best better but by can cannot could
    describe did do does explain few first for from funny get give good had has have her him his how i idea if in
    into is it its just kind list little make may me more most my name new no not of on one or our polite politely
    put rhyming say sentence she short should so some tell that the their them then there these they thing things
    this three to two up us very was way ways we what when where which who why will with without would write you
    your couplet friendly
"""
STOP_WORDS = frozenset(_STOP.split())
"""Words that say nothing about the subject of a request."""


def words(text: str) -> list[str]:
    """The words of `text` in order, lower case, apostrophes made straight, e.g. ["it's", "warm"]."""
    return [w.replace("’", "'") for w in _WORD.findall(text.lower())]


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """The stem of a lower-case word; British and American spelling give the same one.

    Source: the Snowball English stemmer (PyPI `snowballstemmer`), after -our becomes -or.
    """
    plain = word.removesuffix("'s")
    if len(plain) > 5:
        plain = plain.replace("our", "or")
    with _STEMMING:  # the stemmer works in fields of its own
        return str(_ENGLISH.stemWord(plain))


def content_stems(text: str) -> tuple[str, ...]:
    """The distinct stems of the words that carry meaning, in order."""
    return tuple(dict.fromkeys(stem(w) for w in words(text) if w not in STOP_WORDS))


def lines(text: str) -> list[str]:
    """The lines that hold at least one word, without their outer spaces."""
    return [line.strip() for line in text.splitlines() if _WORD.search(line)]


def sentences(text: str) -> list[str]:
    """The sentences of `text`: split at line ends and after . ! ? …, but not after "Dr." and the like."""
    found: list[str] = []
    for line in lines(text):
        pending = ""
        for piece in _SENTENCE_END.split(line):
            pending = f"{pending} {piece}" if pending else piece
            if _ABBREVIATION.search(pending) or _MARKER.fullmatch(pending + " "):
                continue
            if _WORD.search(pending):
                found.append(pending)
            pending = ""
        if _WORD.search(pending):
            found.append(pending)
    return found


def marked_items(text: str) -> list[str]:
    """The items of a list that is numbered or bulleted, one a line or all in one line; without the marks."""
    by_line = [_MARKER.sub("", line) for line in text.splitlines() if _MARKER.match(line)]
    if len(by_line) < 2:
        inline = _INLINE_NUMBER.split(text)
        if len(inline) > 2:
            by_line = inline[1:]
    return _with_words(by_line)


def list_items(text: str) -> list[str]:
    """The distinct items of the list in `text`; empty when it holds none.

    In this order: lines with a number or a bullet (or "1. … 2. …" within a line); two or more lines of
    their own below an optional introduction that ends in a colon; commas with a final "and" or "or" in
    one sentence (at most 8 words an item, words before a colon not counted).
    """
    marked = marked_items(text)
    if marked:
        return _distinct(marked)
    rows = lines(text)
    if len(rows) > 1 and rows[0].endswith(":"):
        rows = rows[1:]
    if len(rows) > 1:
        return _distinct(rows) if all(len(words(r)) <= 2 * LONGEST_COMMA_ITEM for r in rows) else []
    return _distinct(_comma_items(rows[0])) if rows else []


def _comma_items(text: str) -> list[str]:
    """Items of the first sentence with a comma and a final and/or, e.g. "Take a hat, a towel and a book."."""
    for sentence in sentences(text):
        tail = sentence.rsplit(": ", 1)[-1]
        if "," not in tail or not re.search(r"[,\s](?:and|or|&)\s", tail):
            continue
        items = _with_words(_COMMA_OR_AND.split(tail))
        if len(items) > 1 and all(len(words(i)) <= LONGEST_COMMA_ITEM for i in items):
            return items
    return []


def _with_words(items: list[str]) -> list[str]:
    return [i.strip() for i in items if _WORD.search(i)]


def _distinct(items: list[str]) -> list[str]:
    """Items said twice count once."""
    return list({" ".join(words(i)): i for i in items}.values())
