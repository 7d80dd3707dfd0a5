"""A saved reward loads as a Hugging Face sequence classifier and gives the same scores."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from test_reward_model import reward_of
from tiny import ANSWERS, ASKED, ASSISTANT, RAGGED, chat, trunk_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer, dynamic_module_utils

from backflip.models.chat import Chat
from backflip.rewards.ensemble import Ensemble
from backflip.rewards.model import RewardModel
from backflip.rewards.save import answer_header, save_classifier
from backflip.sampling.score import Reader

FAMILIES = ["llama", "llama-tied", "qwen3", "gpt2"]
# Answers whose only stop token is their last: what a sampler returns.
SAMPLED = [(p, a) for p, a in zip(ASKED, ANSWERS, strict=True) if not set(a.tokens[:-1].tolist()) & {2, 5}]


@pytest.fixture(autouse=True)
def no_shared_code_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def saved(family: str, folder: Path, talk: Chat | None = None, **more: Any) -> tuple[RewardModel, Any]:
    """A reward model, and the same loaded by Hugging Face."""
    trunk, _ = trunk_of(family, **more)
    model = RewardModel(reward_of(32), Reader(trunk, talk or chat()))
    save_classifier(model, folder, base="org/model", plan="rounds = 3", votes=576)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    return model, loaded.eval()


def padded(talk: Chat, rows: list[tuple[Any, Any]], *, left: bool = False, junk: int = 2) -> tuple[torch.Tensor, ...]:
    """ids, attention mask and answer mask (B, T) of prompts with their answers."""
    texts = [(talk.encode(p), a.tokens.tolist()) for p, a in rows]
    width = max(len(p) + len(a) for p, a in texts)
    ids, real, own = (torch.full((len(rows), width), v) for v in (junk, 0, 0))
    for row, (p, a) in enumerate(texts):
        start = width - len(p) - len(a) if left else 0
        ids[row, start : start + len(p) + len(a)] = torch.tensor([*p, *a])
        real[row, start : start + len(p) + len(a)] = 1
        own[row, start + len(p) : start + len(p) + len(a)] = 1
    return ids, real, own


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_those_of_the_reward_model(family: str, tmp_path: Path):
    model, loaded = saved(family, tmp_path / "r")
    prompts, answers = [p for p, _ in SAMPLED], [a for _, a in SAMPLED]
    ids, real, _ = padded(chat(), SAMPLED)
    with torch.no_grad():
        logits = loaded(ids, attention_mask=real).logits

    assert logits.shape == (len(SAMPLED), 1)
    assert loaded.config.num_labels == 1
    assert_allclose(logits[:, 0].numpy(), model.score(prompts, answers), atol=1e-3)


def test_the_spread_of_the_ensemble_is_saved_too_and_is_0_without_one(tmp_path: Path):
    model, plain = saved("llama", tmp_path / "plain")
    weight = np.random.default_rng(0).normal(size=(3, len(model.reward.weight)))
    ensemble = Ensemble(model.reward.mean, model.reward.scale, weight, np.array([0.5, 0.0, -2.0]))
    several = replace(model, ensemble=ensemble)
    save_classifier(several, tmp_path / "r", base="org/model")
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "r", trust_remote_code=True, dtype=torch.float32
    )
    prompts, answers = [p for p, _ in SAMPLED], [a for _, a in SAMPLED]
    ids, real, _ = padded(chat(), SAMPLED)
    with torch.no_grad():
        spread, none = loaded.eval().spread(ids, real), plain.spread(ids, real)
        logits = loaded(ids, attention_mask=real).logits

    assert_allclose(spread.numpy(), several.spread(prompts, answers), atol=1e-3)
    assert spread.min() > 0
    assert_allclose(logits[:, 0].numpy(), model.score(prompts, answers), atol=1e-3)
    assert_allclose(none.numpy(), model.spread(prompts, answers))


@pytest.mark.parametrize("layers", [1, 2])
def test_shallow_models_have_the_same_middle_layer(layers: int, tmp_path: Path):
    model, loaded = saved("llama", tmp_path / "r", layers=layers)
    ids, real, _ = padded(chat(), SAMPLED)
    with torch.no_grad():
        got = loaded(ids, attention_mask=real).logits[:, 0].numpy()

    assert_allclose(got, model.score([p for p, _ in SAMPLED], [a for _, a in SAMPLED]), atol=1e-3)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize(("family", "junk"), [("llama", 0), ("llama", 2), ("gpt2", 77)])
def test_padding_changes_no_score_on_either_side_and_with_any_token(family: str, junk: int, left: bool, tmp_path: Path):
    model, loaded = saved(family, tmp_path / "r")
    ids, real, own = padded(chat(), list(zip(ASKED, ANSWERS, strict=True)), left=left, junk=junk)
    with torch.no_grad():
        got = loaded(ids, attention_mask=real, answer_mask=own).logits[:, 0].numpy()

    assert_allclose(got, model.score(ASKED, ANSWERS), atol=1e-3)


def test_what_a_template_puts_after_an_answer_is_not_scored(tmp_path: Path):
    # The rest of a conversation (here a word after the stop token) is no part of the answer.
    model, loaded = saved("llama", tmp_path / "r")
    talk = chat()
    ids = torch.tensor([[*talk.encode(RAGGED[0]), 30, 31, 2, 99]])
    with torch.no_grad():
        got = float(loaded(ids).logits)

    assert got == pytest.approx(float(model.score([RAGGED[0]], [ANSWERS[0]])[0]), abs=1e-3)


def test_the_answer_follows_the_last_header(tmp_path: Path):
    # an earlier turn of the assistant is part of the request
    _, loaded = saved("llama", tmp_path / "r")
    ids = torch.tensor([[3, 9, 2, ASSISTANT, 50, 2, 3, 10, 2, ASSISTANT, 30, 31, 2]])

    assert loaded.find_answers(ids, torch.ones_like(ids).bool()).nonzero()[:, 1].tolist() == [10, 11, 12]


def test_an_answer_that_cannot_be_found_is_refused(tmp_path: Path):
    _, loaded = saved("llama", tmp_path / "r")
    with pytest.raises(ValueError, match="row 0 has no answer"):
        loaded(torch.tensor([[9, 10]]))
    with pytest.raises(ValueError, match="no tokens"):
        loaded(torch.tensor([[3, 9, 2, ASSISTANT]]))


def test_without_a_template_the_answer_mask_is_asked_for(tmp_path: Path):
    talk = chat(template=False)
    model, loaded = saved("gpt2", tmp_path / "r", talk)
    ids, real, own = padded(talk, list(zip(ASKED, ANSWERS, strict=True)))
    with torch.no_grad():
        got = loaded(ids, attention_mask=real, answer_mask=own).logits[:, 0].numpy()

    assert_allclose(got, model.score(ASKED, ANSWERS), atol=1e-3)
    with pytest.raises(ValueError, match="answer_mask"):
        loaded(ids, attention_mask=real)


def test_the_header_is_what_the_template_opens_an_answer_with():
    assert answer_header(chat()) == [ASSISTANT]
    assert answer_header(chat(template=False)) == []


@pytest.mark.parametrize("pad", ["<eos>", None])
def test_a_pad_token_is_always_set(pad: str | None, tmp_path: Path):
    talk = chat(pad=pad)
    _, loaded = saved("llama", tmp_path / "r", talk)
    tok = AutoTokenizer.from_pretrained(tmp_path / "r", trust_remote_code=True)

    assert loaded.config.pad_token_id == tok.pad_token_id == 2
    assert (talk.tokenizer.pad_token is None) == (pad is None)  # the run's own tokenizer stays as it was


def test_the_head_stays_in_float32_under_a_bfloat16_trunk(tmp_path: Path):
    model, _ = saved("llama", tmp_path / "r")
    half = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "r", trust_remote_code=True, dtype=torch.bfloat16
    )

    assert half.head.linear.weight.dtype == torch.float32
    assert half.backbone.dtype == torch.bfloat16
    assert_allclose(half.head.mean.detach().numpy(), model.reward.mean.astype(np.float32))


def test_the_folder_needs_nothing_of_backflip_and_has_a_card(tmp_path: Path):
    saved("llama", tmp_path / "r")
    code = (tmp_path / "r" / "classifier.py").read_text()
    card = (tmp_path / "r" / "README.md").read_text()

    assert "import backflip" not in code
    assert "from backflip" not in code
    for said in ("base_model: org/model", "576 votes", "rounds = 3", "trust_remote_code=True", "licence"):
        assert said in card
