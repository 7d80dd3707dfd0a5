"""People's votes from other projects, and what a small model and plain counting see in the texts they judged.

Two sets are read from a folder of one's own, which is never copied: `ukpconvarg` (UKPLab, arguments, about five
votes a pair) and `llmfao` (answers of 59 models to 13 prompts). Knows nothing of rewards or raters.
"""

import csv
import gzip
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

Array = NDArray[np.float64]
ANSWER_TOKENS = 144
"""How much of a text the model reads."""
FIRST_PERSON = frozenset(["i", "i'm", "i've", "i'd", "me", "my", "mine", "we", "our", "us"])
HEDGES = frozenset(
    ["maybe", "perhaps", "might", "could", "possibly", "probably", "seems", "seem", "likely", "somewhat"]
)


class Missing(Exception):
    """A data set is not where it was looked for; the message says so in three lines."""


class Texts(NamedTuple):
    """What was judged: `group` is the topic or prompt, `request` what the text answers."""

    group: list[str]
    request: list[str]
    text: list[str]


class People(NamedTuple):
    """Votes (P,): places of the two texts, the choice (0 first, 1 second, 2 tie), who, on which pair.

    The first text is the one shown first (on the left).
    """

    texts: Texts
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    choice: NDArray[np.int64]
    rater: NDArray[np.int64]
    pair: NDArray[np.int64]


def read_votes(folder: Path, name: str) -> People:
    """The votes of "ukpconvarg" or "llmfao" below `folder`. Raises: Missing."""
    here = folder / name
    if not here.is_dir():
        raise Missing(
            f"{folder} holds no folder {name}.\n"
            "The votes are other people's and are not part of this repository.\n"
            "Give the folder that holds ukpconvarg and llmfao, or none to measure on simulated votes only."
        )
    return _read_ukp(here) if name == "ukpconvarg" else _read_llmfao(here)


def _read_ukp(folder: Path) -> People:
    """Only what a rater saw and said is read: columns computed from all votes are left alone."""
    texts = Texts([], [], [])
    place: dict[tuple[str, str], int] = {}
    for line in (folder / "args.jsonl").read_text(encoding="utf-8").splitlines():
        d = json.loads(line)
        place[d["topic"], d["id"]] = len(place)
        _add(texts, d["topic"], f"{d['title']}. {d['stance']}.", d["text"])
    rows = []
    with gzip.open(folder / "votes.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for r in csv.DictReader(file):
            a, b = place[r["topic"], r["arg_a"]], place[r["topic"], r["arg_b"]]
            rows.append((a, b, {"a1": 0, "a2": 1, "equal": 2}[r["vote"]], r["rater"], r["topic"] + r["pair"]))
    return _people(texts, rows)


def _read_llmfao(folder: Path) -> People:
    names = {}
    for line in (folder / "models.jsonl").read_text(encoding="utf-8").splitlines():
        d = json.loads(line)
        names[str(d["id"])] = d["name"]
    texts = Texts([], [], [])
    place: dict[tuple[str, str], int] = {}
    for line in (folder / "pairs-crowd.jsonl").read_text(encoding="utf-8").splitlines():
        d = json.loads(line)
        for side in "xy":
            key = (str(d["prompt"]), str(d[f"model_{side}"]))
            if key not in place:
                place[key] = len(place)
                _add(texts, key[0], d["text"][:400], d[f"result_{side}"])
    rows = []
    with (folder / "crowd-comparisons.csv").open(encoding="utf-8", newline="") as file:
        for r in csv.DictReader(file):
            left, right = r["model_x"], r["model_y"]
            if {names[left], names[right]} != {r["left"], r["right"]}:
                continue
            if names[left] != r["left"]:
                left, right = right, left
            choice = {"left": 0, "right": 1, "tie": 2}[r["winner"]]
            rows.append((place[r["prompt"], left], place[r["prompt"], right], choice, r["worker"], r["id"]))
    return _people(texts, rows)


def _add(texts: Texts, group: str, request: str, text: str) -> None:
    texts.group.append(group)
    texts.request.append(request)
    texts.text.append(text)


def _people(texts: Texts, rows: Sequence[tuple[int, int, int, str, str]]) -> People:
    a, b, choice = (np.array([r[i] for r in rows]) for i in range(3))
    rater, pair = (np.unique([r[i] for r in rows], return_inverse=True)[1] for i in (3, 4))
    return People(texts, a, b, choice, rater, pair)


def features_of(texts: Texts, kept: Path) -> Array:
    """(N, H + 21) features: the middle layer of SmolLM2-135M, averaged over a text, and `text_figures`.

    Each is standardised, then centred within its group; the model's columns are turned to their principal axes
    and scaled by the first one's deviation, the figures count a quarter. What the model read is kept in the file
    `kept`, for it takes minutes.
    """
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, _read(texts))
    hidden = np.load(kept).astype(np.float64)
    figures = np.array([text_figures(t) for t in texts.text])
    hidden, figures = (centred((x - x.mean(0)) / (x.std(0) + 1e-6), texts.group) for x in (hidden, figures))
    _, size, axes = np.linalg.svd(hidden, full_matrices=False)
    kept_axes = min(500, len(size))
    return np.hstack([hidden @ axes[:kept_axes].T / (size[0] / math.sqrt(len(hidden))), figures / 4])


def centred(x: Array, group: Sequence[str]) -> Array:
    """(N, F) features less the mean of their group (N,)."""
    place = np.unique(np.array(group), return_inverse=True)[1]
    sums = np.zeros((place.max() + 1, x.shape[1]))
    np.add.at(sums, place, x)
    return x - (sums / np.bincount(place)[:, None])[place]


def _read(texts: Texts) -> NDArray[np.float32]:
    """(N, H) mean of the middle layer over each text, read as an answer to its request."""
    import torch

    from backflip.core.records import Answer, Prompt
    from backflip.models.chat import open_chat
    from backflip.models.load import DEMO_MODEL, load_model
    from backflip.sampling.score import middle_layer, pack_answers

    loaded = load_model(DEMO_MODEL, dtype=torch.float32)
    trunk, chat = loaded.trunk, open_chat(loaded)
    layer = middle_layer(trunk.layers)
    prompts, answers = [], []
    for i, (request, text) in enumerate(zip(texts.request, texts.text, strict=True)):
        tokens = np.array((chat.encode_answer(text) or chat.encode_answer("."))[:ANSWER_TOKENS], dtype=np.int64)
        prompts.append(Prompt(id=request, split="train", text=request))
        no = np.zeros(len(tokens), dtype=np.float32)
        answers.append(Answer(prompt_id=request, index=i, policy="", tokens=tokens, logp=no, ended=False, text=text))
    order = sorted(range(len(answers)), key=lambda i: len(answers[i].tokens))
    out = np.empty((len(answers), trunk.hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for at in range(0, len(order), 8):
            some = order[at : at + 8]
            batch = pack_answers(chat, [prompts[i] for i in some], [answers[i] for i in some], trunk.device)
            states, mask = trunk.hidden(batch, None, keep=(layer,)).kept[layer], batch.answer_mask
            summed = (states[batch.answer_rows].float() * mask[..., None]).sum(1)
            out[some] = (summed / mask.sum(1, keepdim=True)).numpy()
    return out


@cache
def _feelings() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def text_figures(text: str) -> list[float]:
    """Twenty plain figures of a text: lengths, marks, words, feeling."""
    words = re.findall(r"[A-Za-z']+", text.lower())
    n, chars = max(len(words), 1), max(len(text), 1)
    sentences = max(len(re.findall(r"[.!?]+(?:\s|$)", text)), 1)
    feeling = _feelings().polarity_scores(text)
    counts = [chars, n, sentences, n / sentences, *(text.count(c) for c in '?!,\n"'), sum(c.isdigit() for c in text)]
    return [
        *(math.log1p(c) for c in counts),
        sum(map(len, words)) / n,
        len(set(words)) / n,
        sum(c.isupper() for c in text) / chars,
        float("http" in text),
        *(sum(w in some for w in words) / n for some in (FIRST_PERSON, HEDGES)),
        sum(len(w) >= 8 for w in words) / n,
        feeling["pos"],
        feeling["neg"],
        feeling["compound"],
    ]
