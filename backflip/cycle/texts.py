"""A run's reward, asked about plain texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from backflip.core.records import Answer, Prompt
from backflip.cycle.artefacts import readable
from backflip.cycle.folder import PLAN, RunPath, find_run
from backflip.cycle.plan import read_plan
from backflip.cycle.talk import require_argument, saved_version
from backflip.cycle.untouched import untouched_of
from backflip.models.chat import open_chat
from backflip.rewards.ensemble import load_ensemble
from backflip.rewards.model import RewardModel
from backflip.rewards.model import load_reward as load_head
from backflip.sampling.score import Reader

Figure = Callable[[Sequence[Prompt], Sequence[Answer]], NDArray[np.float64]]
"""(B,) numbers of B answers to B prompts."""


@final
@dataclass(frozen=True, eq=False)
class TextScorer:
    """A loaded reward that scores answers to requests; 0 is the untouched model's mean, 1 its standard deviation."""

    version: str
    """The reward's version in the run, as "reward-r1"."""
    model: RewardModel

    def score(self, pairs: Sequence[tuple[str, str | Answer]]) -> NDArray[np.float64]:
        """(B,) rewards of B (request, answer) pairs.

        An answer is a text, taken to have ended by itself, or an `Answer` as a policy gives it.
        Raises: DataError when a request has no tokens, or a pair exceeds the model's context; ConfigError for anything
        but such pairs.
        """
        return self._read(pairs, self.model.score)

    def spread(self, pairs: Sequence[tuple[str, str | Answer]]) -> NDArray[np.float64]:
        """(B,) how unsure the reward is of each: the standard deviation over its ensemble, in units of the reward.

        Raises: as `score`.
        """
        return self._read(pairs, self.model.spread)

    def _read(self, pairs: Sequence[tuple[str, str | Answer]], figure: Figure) -> NDArray[np.float64]:
        for number, pair in enumerate(pairs):
            what = "(request, answer), the answer a text or an Answer"
            require_argument(f"pairs[{number}]", pair, what, fits=_is_pair(pair))
        if not pairs:
            return np.zeros(0)
        ids = {text: f"{n + 1}" for n, text in enumerate(dict.fromkeys(text for text, _ in pairs))}
        prompts = [Prompt(id=ids[text], split="final", text=text) for text, _ in pairs]
        answers = [self._answer(prompt, said) for prompt, (_, said) in zip(prompts, pairs, strict=True)]
        return figure(prompts, answers)

    def _answer(self, prompt: Prompt, said: str | Answer) -> Answer:
        chat = self.model.reader.chat
        if isinstance(said, str):
            tokens = np.array(chat.encode_answer(said), dtype=np.int64)
            logp = np.full(len(tokens), np.nan, dtype=np.float32)
            said = Answer(
                prompt_id=prompt.id, index=0, policy="", tokens=tokens, logp=logp, ended=True, text=said
            )  # fmt: skip
        chat.encode(prompt, len(said.tokens))
        return said


def _is_pair(value: object) -> bool:
    """Whether it is a request and an answer to it."""
    match value:
        case [str(), str() | Answer()]:
            return True
    return False


def load_reward(run: RunPath, version: str | None = None) -> TextScorer:
    """Load a run's newest reward, or the version named, as "reward-r1".

    >>> import backflip
    >>> reward = backflip.load_reward("runs/mine")
    >>> scores = reward.score([("we love tea", "tea is good ."), ("we love tea", "a sad sad dog")])
    >>> scores.shape, reward.version
    ((2,), 'reward-r2')

    Raises: BackflipError when the run has no such reward (yet); ConfigError for a folder without a run; DataError when
    its model cannot be loaded.
    """
    root = find_run(run)
    plan = read_plan(root / PLAN)
    saved = saved_version(root, plan, "reward", version)
    loaded = untouched_of(root, plan)
    reader = Reader(
        loaded.trunk, open_chat(loaded), micro=plan.ppo.micro, temperature=plan.sampling.temperature
    )  # fmt: skip
    with readable(root / saved.path, "Or carry the run on: it fits a reward that it misses anew."):
        head, ensemble = load_head(root / saved.path), load_ensemble(root / saved.path)
    return TextScorer(saved.id, RewardModel(head, reader, ensemble))
