"""Fine-tuning on demonstrations: the loss is Hugging Face's, the steps are exact, the answers are learned."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import Bench, requests
from transformers import AutoModelForCausalLM

from backflip.core.errors import BackflipError
from backflip.core.records import Answer, Prompt
from backflip.policies.sft import SFT, fresh_imitator, imitate, nats_per_token, steps_of
from backflip.policies.state import PolicyState, load_state, save_state

SHOWN = ("the sun is good .", "a dog and a cat", "we love the blue sea , the sun and my garden .")


def demonstrations(bench: Bench, count: int = 6) -> tuple[list[Prompt], list[Answer]]:
    """Requests and answers of three different lengths."""
    prompts = requests("train", count)
    answers = []
    for n, p in enumerate(prompts):
        tokens = np.array(bench.chat.encode_answer(SHOWN[n % 3]))
        logp = np.zeros(len(tokens), dtype=np.float32)
        answers.append(
            Answer(prompt_id=p.id, index=0, policy="people", tokens=tokens, logp=logp, ended=True, text=SHOWN[n % 3])
        )
    return prompts, answers


def trained(bench: Bench, config: SFT, steps: int | None = None) -> tuple[PolicyState, list[float]]:
    """The state after `steps` steps (None: all) and each one's loss."""
    state = fresh_imitator(bench.loaded.trunk, config, 5)
    path = imitate(state, bench.reader, *demonstrations(bench), config, seed=5)
    return state, [step.metrics["sft/loss"] for step in islice(path, steps)]


def weights(state: PolicyState) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in state.adapter.parameters()])


def test_the_loss_is_the_cross_entropy_of_the_answers_tokens_alone(tiny_model: Path) -> None:
    bench = Bench(tiny_model, None)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    prompts, answers = demonstrations(bench)
    nats, tokens = 0.0, 0
    for p, a in zip(prompts, answers, strict=True):
        asked = bench.chat.encode(p)
        ids = torch.tensor([[*asked, *a.tokens.tolist()]])
        labels = torch.where(torch.arange(ids.shape[1]) < len(asked), -100, ids)
        with torch.no_grad():
            nats += float(model(ids, labels=labels).loss) * len(a.tokens)
        tokens += len(a.tokens)

    _, losses = trained(bench, SFT(batch=6, rank=4), 1)

    assert losses == [pytest.approx(nats / tokens, abs=1e-5)]


@pytest.mark.parametrize("rank", [4, 0])
def test_smaller_forwards_give_the_same_steps(tiny_model: Path, rank: int) -> None:
    bench = Bench(tiny_model, None)
    results = [trained(bench, SFT(batch=6, epochs=3, rank=rank, micro=micro)) for micro in (6, 4)]
    states = [state for state, _ in results]

    assert results[0][1] == pytest.approx(results[1][1], abs=1e-5)
    assert weights(states[0]).abs().max() > 1e-4
    assert torch.allclose(weights(states[0]), weights(states[1]), atol=2e-5)


def test_a_checkpoint_carries_on_bit_by_bit(tiny_model: Path, tmp_path: Path) -> None:
    bench, config = Bench(tiny_model, None), SFT(batch=4, epochs=3, rank=4)
    whole, losses = trained(bench, config)
    half, first = trained(bench, config, 3)
    save_state(half, tmp_path / "half")
    resumed = load_state(tmp_path / "half")
    rest = [step.metrics["sft/loss"] for step in imitate(resumed, bench.reader, *demonstrations(bench), config, seed=5)]

    assert steps_of(config, 6) == len(losses) == 6
    assert [*first, *rest] == losses
    assert torch.equal(weights(whole), weights(resumed))


def test_the_model_comes_to_answer_as_it_was_shown_and_stops_there(tiny_model: Path) -> None:
    bench = Bench(tiny_model, None)
    prompts, answers = demonstrations(bench)
    before = nats_per_token(fresh_imitator(bench.loaded.trunk, SFT(), 5), bench.reader, prompts, answers)
    bench.state, losses = trained(bench, SFT(batch=6, epochs=60, rank=8, learning_rate=2e-2))
    bench.engine.load("after")
    given = [a for batch in bench.engine.sample(prompts, 8, seed=1, max_tokens=20) for a in batch]
    shown = {p.id: a.text for p, a in zip(prompts, answers, strict=True)}

    assert before == pytest.approx(losses[0], abs=0.05)
    assert nats_per_token(bench.state, bench.reader, prompts, answers) < 0.05
    assert sum(g.text == shown[g.prompt_id] and g.ended for g in given) > 0.6 * 48


def test_the_learning_rate_falls_in_a_straight_line_to_zero(tiny_model: Path) -> None:
    bench, config = Bench(tiny_model, None), SFT(batch=6, epochs=4, rank=4, learning_rate=0.8e-3)
    state = fresh_imitator(bench.loaded.trunk, config, 5)
    rates = [
        step.state.optimiser.param_groups[0]["lr"]
        for step in imitate(state, bench.reader, *demonstrations(bench), config, seed=5)
    ]

    assert rates == pytest.approx([0.8e-3, 0.6e-3, 0.4e-3, 0.2e-3])


def test_a_fine_tuning_that_diverges_is_stopped_with_a_cure(tiny_model: Path) -> None:
    bench, config = Bench(tiny_model, None), SFT(batch=6, rank=4)
    state = fresh_imitator(bench.loaded.trunk, config, 5)
    with torch.no_grad():
        next(iter(state.adapter.parameters())).fill_(float("nan"))

    with pytest.raises(BackflipError, match=r"(?s)step 0 is not finite.*sft.learning_rate"):
        next(imitate(state, bench.reader, *demonstrations(bench), config, seed=5))
