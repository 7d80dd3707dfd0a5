"""A race to a share of wins: how warm answers are, by VADER, and the clock that stands still while they are measured.

Needs vaderSentiment and nothing else, so that either side can use it.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_VADER = SentimentIntensityAnalyzer()


def valence(text: str) -> float:
    """VADER's compound score, from -1 (hostile) to 1 (warm)."""
    return float(_VADER.polarity_scores(text)["compound"])


def win_share(found: Sequence[float], untouched: Sequence[Sequence[float]]) -> float:
    """Mean over prompts of the share of the untouched model's answers that are less warm; a tie is half a win."""
    shares = [sum((x > y) + 0.5 * (x == y) for y in ys) / len(ys) for x, ys in zip(found, untouched, strict=True)]
    return sum(shares) / len(shares)


class Race:
    """One run's clock, which starts when it is made, and the win shares met on the way.

    `curve` holds [seconds of training, episodes, share of wins].
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.untouched, self.mean, self.std = settings["untouched"], settings["mean"], settings["std"]
        self.target, self.room_s, self.every_s = settings["target"], settings["minutes"] * 60, settings["every_s"]
        self.began, self.aside, self.last = time.perf_counter(), 0.0, 0.0
        self.curve: list[list[float]] = []

    def seconds(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self.began - self.aside

    def reward(self, texts: Sequence[str]) -> list[float]:
        """What both sides climb: the answers' valence, 0 and 1 being the untouched model's mean and deviation."""
        return [(valence(t) - self.mean) / self.std for t in texts]

    def over(self, episodes: int, answers: Callable[[], Sequence[str]]) -> bool:
        """Call after every update: measures when it is time to, and says whether the race is over.

        It is over when two measurements in a row reach the target, or the time is used up.
        """
        now = self.seconds()
        if now - self.last < self.every_s and now < self.room_s:
            return False
        share = win_share([valence(t) for t in answers()], self.untouched)
        self.aside += self.seconds() - now
        self.last = now
        self.curve.append([now, episodes, share])
        sys.stderr.write(f"{now:.0f} s, {episodes} episodes: {share:.3f} wins\n")
        sys.stderr.flush()
        return now >= self.room_s or (min([c[2] for c in self.curve[-2:]]) >= self.target and len(self.curve) > 1)
