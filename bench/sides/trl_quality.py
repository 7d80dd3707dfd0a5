"""TRL's PPO in the race to a share of wins. See `race`; the trainer is `trl_side`'s, with answers that may end."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from race import Race
from serve import Phases, Turn, serve
from transformers import TrainerCallback
from trl_side import make_room, ppo_trainer

AT_A_TIME = 64
"""Held-out answers drawn at once."""


class Finished(Exception):
    """The race is over: PPOTrainer looks at no other sign to stop."""


class Watch(TrainerCallback):  # type: ignore[misc]
    """Tells the race of every update."""

    def __init__(self, race: Race, held_out: Sequence[Sequence[int]], new: int) -> None:
        self.race, self.held_out, self.new = race, held_out, new
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure when it is time to. Raises: Finished."""
        if self.race.over(state.episode, self.answers):
            raise Finished

    @torch.no_grad()
    def answers(self) -> list[str]:
        """One answer to each held-out prompt."""
        words, policy = self.trainer.processing_class, self.trainer.model.policy
        texts: list[str] = []
        for at in range(0, len(self.held_out), AT_A_TIME):
            asked = words.pad({"input_ids": list(self.held_out[at : at + AT_A_TIME])}, return_tensors="pt")
            out = policy.generate(
                **asked, max_new_tokens=self.new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
            )  # fmt: skip
            texts += spoken(words, out[:, asked["input_ids"].shape[1] :])
        return texts


def spoken(words: Any, tokens: torch.Tensor) -> list[str]:
    """The answers' texts; what stands after the end is padding."""
    return [t.strip() for t in words.batch_decode(tokens, skip_special_tokens=True)]


def prepare(settings: dict[str, Any], phases: Phases) -> Turn:
    """PPO on the valence of its answers; one turn is the whole race."""
    import trl.experimental.ppo.ppo_trainer as code

    make_room(settings)
    race = Race(settings)
    watch = Watch(race, settings["held_out"], settings["new"])
    judge = torch.nn.Identity()
    trainer, _ = ppo_trainer(settings | {"updates": 100_000}, phases, callbacks=[watch], reward_model=judge)
    watch.trainer = trainer
    read = code.get_reward

    def get_reward(model: Any, ids: torch.Tensor, pad: int, context: int) -> Any:
        if model is not judge:
            return read(model, ids, pad, context)
        return None, torch.tensor(race.reward(spoken(trainer.processing_class, ids[:, context:]))), None

    code.get_reward = get_reward

    def turn() -> dict[str, Any]:
        with suppress(Finished):
            trainer.train()
        return {"tokens": 0, "curve": race.curve}

    return turn


if __name__ == "__main__":
    serve(prepare)
