"""Every check passes on a sound model and fails on one that was broken on purpose, each in its own way."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import Bench, requests, save_model

from backflip.core.errors import BackflipError
from backflip.core.records import Answer, Prompt
from backflip.measure import soundness
from backflip.models.chat import Chat
from backflip.policies import ppo
from backflip.rewards.fit import Reward
from backflip.sampling.score import Reader

TOKENS = 12
CONFIG = ppo.PPO(prompts=4, answers=4, rank=4, alpha=8.0, micro=8)


class Length:
    """Pays for length."""

    def score(self, prompts: Any, answers: Any) -> Any:
        return np.array([len(a.tokens) / TOKENS for a in answers])


class Broken:
    """A trunk whose hidden states go through `fault(hidden, batch)` first."""

    def __init__(self, trunk: Any, fault: Callable[[Any, Any], Any]) -> None:
        self.trunk, self.fault = trunk, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trunk, name)

    def hidden(self, batch: Any, adapter: Any = None, **more: Any) -> Any:
        out = self.trunk.hidden(batch, adapter, **more)
        return type(out)(self.fault(out.final, batch), out.kept)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(save_model(tmp_path_factory.mktemp("sound") / "model"), Length())
    made.state = ppo.fresh_state(made.loaded.trunk, CONFIG, 0)
    return made


@pytest.fixture(scope="module")
def drawn(bench: Bench) -> tuple[list[Prompt], list[Answer]]:
    """32 answers of different lengths, with the prompt of each."""
    bench.engine.load("reference")
    prompts = requests("train", 8)
    answers = [a for batch in bench.engine.sample(prompts, 4, seed=1, max_tokens=TOKENS) for a in batch]
    by_id = {p.id: p for p in prompts}
    return [by_id[a.prompt_id] for a in answers], answers


def reader(bench: Bench, fault: Callable[[Any, Any], Any] | None = None, **changes: Any) -> Reader:
    trunk: Any = bench.loaded.trunk
    return replace(bench.reader, trunk=Broken(trunk, fault) if fault else trunk, recent={}, **changes)


# --- stop tokens --------------------------------------------------------------------------------------------------


def ending(answers: Sequence[Answer], share: float) -> list[Answer]:
    return [replace(a, ended=n < share * len(answers)) for n, a in enumerate(answers)]


def test_stop_tokens_that_end_a_quarter_of_the_answers_are_sound(bench, drawn):
    found = soundness.stop_tokens(bench.chat, ending(drawn[1], 1 / 4), TOKENS)

    assert (found.level, found.figures["ended_share"]) == ("ok", 0.25)
    assert found.fact == "25% of 32 answers end by themselves within 12 tokens."


def test_a_model_that_never_ends_is_a_fault_and_one_that_seldom_does_a_warning(bench, drawn):
    assert soundness.stop_tokens(bench.chat, ending(drawn[1], 0), TOKENS).level == "fault"
    assert soundness.stop_tokens(bench.chat, ending(drawn[1], 1 / 32), TOKENS).level == "warning"


def test_a_base_model_that_never_ends_is_only_warned_about(bench, drawn):
    plain = replace(bench.chat, templated=False)

    assert soundness.stop_tokens(plain, ending(drawn[1], 0), TOKENS).level == "warning"


def test_a_model_that_demonstrations_will_teach_need_not_end_yet(bench, drawn):
    found = soundness.stop_tokens(bench.chat, ending(drawn[1], 0), TOKENS, taught=True)

    assert found.level == "warning"


def test_a_model_without_a_stop_token_is_a_fault(bench, drawn):
    found = soundness.stop_tokens(replace(bench.chat, stops=()), ending(drawn[1], 1), TOKENS)

    assert (found.level, found.fact) == ("fault", "The model names no token that ends an answer.")


def test_a_template_that_ends_a_turn_with_a_token_that_stops_nothing_is_a_fault(bench, drawn):
    other = bench.chat.tokenizer.convert_tokens_to_ids("<bot>")  # as where eos_token is the base model's
    found = soundness.stop_tokens(replace(bench.chat, stops=(other,)), ending(drawn[1], 1), TOKENS)

    assert found.level == "fault"
    assert found.fact == "The chat template ends an answer with '<end>', and only '<bot>' stops one."


# --- template -----------------------------------------------------------------------------------------------------

SOUND = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user> {{ m['content'] }} <bot>"
    "{% else %} {{ m['content'] }} <end>{% endif %}{% endfor %}"
)
HEAD = "{% for m in messages %}<user> "
TAIL = " <end> {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


def chat_with(bench: Bench, template: str) -> Chat:
    """The bench's chat side with another template; its tokenizer is not shared."""
    tokenizer = type(bench.chat.tokenizer)(
        tokenizer_object=bench.chat.tokenizer.backend_tokenizer, unk_token="<unk>", eos_token="<end>",
        pad_token="<end>", additional_special_tokens=["<user>", "<bot>"],
    )  # fmt: skip
    tokenizer.chat_template = template
    return replace(bench.chat, tokenizer=tokenizer)


def test_requests_and_answers_survive_a_sound_template(bench, drawn):
    found = soundness.template(chat_with(bench, SOUND), *drawn)

    assert found.level == "ok", found  # three of the 32 answers have no words
    assert found.fact == "32 requests and 29 answers survive the chat template unchanged."


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (HEAD + "{{ m['content'][:5] }}" + TAIL, "32 of 32 requests do not reach the model whole"),
        (HEAD + "{{ m['content'] | replace('tea', 'cake') }}" + TAIL, "requests do not reach the model whole"),
    ],
    ids=["cut", "changed"],
)
def test_a_template_that_loses_a_part_of_the_request_is_a_fault(bench, drawn, template, said):
    found = soundness.template(chat_with(bench, template), *drawn)

    assert found.level == "fault"
    assert said in found.fact


def test_a_template_that_writes_into_the_answer_is_a_fault(bench, drawn):
    writes = SOUND.replace(" {{ m['content'] }} <end>", " good {{ m['content'] }} <end>")
    found = soundness.template(chat_with(bench, writes), *drawn)

    assert found.level == "fault"
    assert "29 of 29 answers change when tokenised for training" in found.fact


def test_two_start_tokens_are_a_fault(bench, drawn):
    chat = chat_with(bench, "<user> <user> " + HEAD + "{{ m['content'] }}" + TAIL)
    chat.tokenizer.bos_token = "<user>"
    found = soundness.template(chat, *drawn)

    assert (found.level, found.fact) == ("fault", "32 of 32 requests begin with two start tokens.")


def test_a_frame_that_finished_turns_do_not_have_is_a_warning(bench, drawn):
    plain = "{% for m in messages %}<user> {{ m['content'] }} <end> {% endfor %}"
    found = soundness.template(chat_with(bench, plain + "{% if add_generation_prompt %}<bot> joy{% endif %}"), *drawn)

    assert found.level == "warning"
    assert found.fact == "The chat template shows an answer in another frame than the one it is asked for in."


# --- log-probabilities --------------------------------------------------------------------------------------------


def test_sampler_and_trainer_agree_on_a_sound_model(bench, drawn):
    found = soundness.sampler_agrees(reader(bench), *drawn)

    assert found.level == "ok", found
    assert found.figures["max_nats"] < 1e-4


def test_a_sampler_at_another_temperature_is_a_fault(bench, drawn):
    found = soundness.sampler_agrees(reader(bench, temperature=1.3), *drawn)

    assert found.level == "fault"
    assert found.figures["outside_share"] > 0.05


def test_a_sampler_with_the_weights_of_before_is_a_fault(bench, drawn):
    found = soundness.sampler_agrees(reader(bench, lambda h, _: h * 1.01), *drawn)

    assert found.level == "fault"


def test_bfloat16_may_differ_by_its_rounding_but_not_by_more():
    stub: Any = type("Stub", (), {"trunk": type("Trunk", (), {"dtype": torch.bfloat16})})

    assert soundness._small(stub, {"mean_nats": 0.05, "max_nats": 0.6})
    assert not soundness._small(stub, {"mean_nats": 0.2, "max_nats": 0.6})


def test_answers_are_read_the_same_alone_and_together(bench, drawn):
    found = soundness.padding(reader(bench), *drawn)

    assert found.level == "ok", found
    assert found.figures["mean_nats"] < 1e-5


def test_padding_that_leaks_is_a_fault(bench, drawn):
    def leak(hidden: torch.Tensor, batch: Any) -> torch.Tensor:
        padded = (~batch.answer_mask).sum() / batch.answer_mask.numel()  # as where a mask is missing
        return hidden * (1 + 0.1 * padded)

    found = soundness.padding(reader(bench, leak), *drawn)

    assert found.level == "fault"
    assert found.fact.startswith("An answer read alone and beside others differs by 0.")


def test_a_policy_that_has_learned_nothing_has_no_kl(bench, drawn):
    found = soundness.kl_at_start(reader(bench), bench.state, *drawn)

    assert (found.level, found.figures["max_nats"]) == ("ok", 0.0)


def test_an_adapter_that_begins_with_a_change_is_a_fault(bench, drawn):
    state = ppo.fresh_state(bench.loaded.trunk, CONFIG, 0)
    with torch.no_grad():
        next(iter(state.adapter.b.values())).fill_(0.05)
    found = soundness.kl_at_start(reader(bench), state, *drawn)

    assert found.level == "fault"
    assert found.figures["max_nats"] > 1e-3


def first_step(bench: Bench, fault: Callable[[Any, Any], Any] | None = None) -> dict[str, float]:
    bench.state = ppo.fresh_state(bench.loaded.trunk, CONFIG, 0)
    tools = bench.tools._replace(reader=reader(bench, fault))
    [step] = ppo.climb(bench.state, tools, CONFIG, seed=2, max_tokens=TOKENS, until=1)
    return step.metrics


def test_the_first_minibatch_finds_every_ratio_at_1(bench):
    found = soundness.first_ratio(first_step(bench), torch.float32)

    assert (found.level, found.figures["ratio"]) == ("ok", pytest.approx(1.0, abs=1e-5))


def test_dropout_in_training_is_a_fault(bench):
    def dropout(hidden: torch.Tensor, _: Any) -> torch.Tensor:
        return torch.nn.functional.dropout(hidden, 0.1) if torch.is_grad_enabled() else hidden

    found = soundness.first_ratio(first_step(bench, dropout), torch.float32)

    assert found.level == "fault"
    assert abs(found.figures["ratio"] - 1) > 1e-3


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"objective/kl": 0.02}, "its answers were already 0.02 nats from the untouched model's."),
        (
            {"val/ratio_first": 1.02},
            "the first minibatch's probability ratios were not 1 (mean 1.0200, KL 0 nats).",
        ),
        (  # half of the ratios above, half below
            {"val/approxkl_first": 0.005},
            "the first minibatch's probability ratios were not 1 (mean 1.0000, KL 0.005 nats).",
        ),
    ],
)
def test_a_run_whose_first_step_is_not_sound_stops(figures, said):
    sound = {"objective/kl": 0.0, "val/ratio_first": 1.0, "val/approxkl_first": 0.0}
    soundness.require_sound_start(sound, torch.float32)
    soundness.require_sound_start({"objective/kl": 0.0}, torch.float32)  # best of n has no ratio

    with pytest.raises(BackflipError) as error:
        soundness.require_sound_start(sound | figures, torch.float32)
    assert str(error.value).splitlines()[0] == f"The first step of the climb is not sound: {said}"


# --- reward scale -------------------------------------------------------------------------------------------------


def reward(**changes: Any) -> Reward:
    """Score = feature 0, which has mean 0 and standard deviation 1 on the answers below."""
    plain = Reward(np.zeros(2), np.ones(2), np.array([1.0, 0.0]), 0.0, 0.1, 1.0, 30.0)
    return plain._replace(**changes)


FEATURES = np.array([[1.0, 5.0], [-1.0, 5.0], [1.0, 5.0], [-1.0, 5.0]])


def test_a_normalised_reward_is_sound():
    found = soundness.reward_scale(reward(), FEATURES)

    assert (found.level, found.figures) == ("ok", {"mean": 0.0, "std": 1.0})


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"bias": 0.5}, "It was not normalised after its fit"),
        ({"scale": np.array([0.5, 1.0])}, "It was not normalised after its fit"),
        ({"weight": np.array([0.0, 1.0])}, "answers are all alike to it"),
        ({"weight": np.array([np.nan, 1.0])}, "answers are all alike to it"),
    ],
    ids=["shifted", "twice as wide", "constant", "not a number"],
)
def test_a_reward_on_another_scale_is_a_fault(changes, cause):
    found = soundness.reward_scale(reward(**changes), FEATURES)

    assert found.level == "fault"
    assert cause in found.cause


def test_the_checks_leave_a_model_as_it_was(bench, drawn, tmp_path: Path):
    before = {k: v.clone() for k, v in bench.loaded.trunk.state().items()}
    first_step(bench)
    soundness.sampler_agrees(reader(bench), *drawn)

    assert all(torch.equal(v, before[k]) for k, v in bench.loaded.trunk.state().items())
