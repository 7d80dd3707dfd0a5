"""The decode loop: what it draws, what it records, and that a batch changes nothing."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny import RAGGED, SPECIAL, chat, oracle_logits, prompt, trained, trunk_of
from torch.testing import assert_close

from backflip.core.errors import DataError
from backflip.core.records import Answer, Prompt
from backflip.core.rng import generator
from backflip.models.chat import Chat
from backflip.models.trunk import Trunk
from backflip.sampling.engine import BLOCK, Engine, draw
from backflip.sampling.score import Reader

OFTEN = tuple(range(2, 102))
"""A third of the vocabulary ends an answer, so that lengths differ and the cache is compacted."""


def engine(trunk: Trunk, talk: Chat | None = None, **more: object) -> Engine:
    made = Engine(lambda _: trunk, talk or chat(stops=OFTEN), **more)  # type: ignore[arg-type]
    made.load("v1")
    return made


def drawn(made: Engine, prompts: Sequence[Prompt], n: int, seed: int = 5, max_tokens: int = 12) -> list[Answer]:
    return [a for batch in made.sample(prompts, n, seed=seed, max_tokens=max_tokens) for a in batch]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "mistral-window", "gemma3", "gpt2"])
def test_sampled_log_probabilities_equal_the_scoring_of_the_same_answers(family: str):
    trunk, _ = trunk_of(family)
    answers = drawn(engine(trunk, temperature=0.8), RAGGED, 8)
    by_id = {p.id: p for p in RAGGED}
    read = Reader(trunk, chat(stops=OFTEN), temperature=0.8).read([by_id[a.prompt_id] for a in answers], answers)

    assert len({len(a.tokens) for a in answers}) > 3
    for row, a in enumerate(answers):
        assert_close(read.logp[row, : len(a.tokens)], torch.from_numpy(a.logp), atol=1e-4, rtol=0)


def test_a_merged_policy_samples_what_its_adapter_scores():
    trunk, _ = trunk_of("llama")
    adapter = trained(trunk)
    answers = drawn(engine(trunk.merged(adapter)), RAGGED, 4)
    by_id = {p.id: p for p in RAGGED}
    read = Reader(trunk, chat(stops=OFTEN)).read([by_id[a.prompt_id] for a in answers], answers, adapter)

    for row, a in enumerate(answers):
        assert_close(read.logp[row, : len(a.tokens)], torch.from_numpy(a.logp), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_answer_does_not_depend_on_its_batch(family: str):
    trunk, _ = trunk_of(family)
    prompts = [prompt(f"p{i}", " ".join(f"w{j}" for j in range(10, 11 + i % 5))) for i in range(50)]
    alone, seven, many = (drawn(engine(trunk, batch=b), prompts, 1) for b in (1, 7, 64))
    for other in (seven, many):
        same = [a.tokens.tolist() == b.tokens.tolist() for a, b in zip(alone, other, strict=True)]
        assert np.mean(same) >= 0.99
    assert len({tuple(a.tokens.tolist()) for a in alone}) > 40


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_answer_that_streams_grows_to_the_one_that_would_be_sampled(family: str):
    trunk, _ = trunk_of(family)
    made = engine(trunk, chat(stops=OFTEN[:4]))
    asked = RAGGED[1]
    wanted = drawn(made, [asked], 3)[2]
    *pieces, last = made.stream(asked, 2, seed=5, max_tokens=12)

    assert isinstance(last, Answer)
    assert (last.tokens.tolist(), last.text, last.index) == (wanted.tokens.tolist(), wanted.text, 2)
    assert last.logp == pytest.approx(wanted.logp, abs=1e-5)
    assert len(pieces) == len(wanted.tokens) - 1 > 2
    assert all(last.text.startswith(piece) for piece in pieces)


def test_the_same_seed_gives_the_same_answers_bit_by_bit():
    trunk, _ = trunk_of("llama")
    one, two, other = (drawn(engine(trunk), RAGGED, 4, seed=s) for s in (5, 5, 6))

    for a, b in zip(one, two, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        assert a.logp.tobytes() == b.logp.tobytes()
    assert [a.tokens.tolist() for a in one] != [a.tokens.tolist() for a in other]


def test_noise_is_keyed_by_seed_prompt_index_and_position():
    # The first token of answer 1 to "long" is the inverse of its own uniform number; so is the second, after it.
    trunk, hf = trunk_of("llama")
    talk = chat(stops=())
    answers = drawn(engine(trunk, talk), RAGGED, 2, seed=9, max_tokens=2)
    [it] = [a for a in answers if (a.prompt_id, a.index) == ("long", 1)]
    uniform = generator(9, "token", "long", 1).random(2)

    text = talk.encode(RAGGED[1])
    for position in (0, 1):
        p = torch.softmax(oracle_logits(hf, text)[-1].double(), 0)
        want = int(torch.searchsorted(p.cumsum(0), torch.tensor(uniform[position]), right=True))
        assert it.tokens[position] == want
        text = [*text, want]


def test_a_longer_limit_carries_on_the_same_answer():
    trunk, _ = trunk_of("llama")
    short, long = (drawn(engine(trunk, chat(stops=())), RAGGED, 2, max_tokens=m) for m in (3, 9))

    assert [a.tokens.tolist() for a in short] == [a.tokens[:3].tolist() for a in long]


def test_every_stop_token_ends_an_answer_and_is_left_out_of_its_text():
    trunk, _ = trunk_of("llama")
    made = engine(trunk, chat(stops=OFTEN))
    answers = drawn(made, RAGGED, 40, max_tokens=6)
    ended = [a for a in answers if a.ended]

    assert len({int(a.tokens[-1]) for a in ended}) > 20  # many different ones, not only eos
    for a in answers:
        assert not set(a.tokens[:-1].tolist()) & set(OFTEN)
        assert a.ended == (int(a.tokens[-1]) in OFTEN)
        assert a.ended or len(a.tokens) == 6
        assert len(a.logp) == len(a.tokens)
        kept = a.tokens[:-1] if a.ended else a.tokens
        assert a.text == " ".join(f"w{t}" for t in kept.tolist() if t >= len(SPECIAL))


def test_without_stop_tokens_an_answer_runs_to_the_limit():
    trunk, _ = trunk_of("llama")
    answers = drawn(engine(trunk, chat(stops=())), RAGGED, 2, max_tokens=5)

    assert [len(a.tokens) for a in answers] == [5] * 6
    assert not any(a.ended for a in answers)


def test_answers_carry_prompt_index_version_and_come_in_order():
    trunk, _ = trunk_of("llama")
    batches = list(engine(trunk, chat(stops=()), batch=4).sample(RAGGED, 2, seed=0, max_tokens=3))

    assert [[(a.prompt_id, a.index) for a in b] for b in batches] == [
        [("short", 0), ("short", 1), ("long", 0), ("long", 1)],  # four rows that end together
        [("middle", 0), ("middle", 1)],
    ]
    assert {a.policy for b in batches for a in b} == {"v1"}
    assert batches[0][0].logp.dtype == np.float32
    assert batches[0][0].tokens.dtype == np.int64


def test_load_takes_the_newest_weights():
    plain, _ = trunk_of("llama")
    weights = {"old": plain, "new": plain.merged(trained(plain, size=1.0))}
    made = Engine(weights.__getitem__, chat(stops=()))
    out = {}
    for version in weights:
        assert made.load(version) == version
        out[version] = drawn(made, RAGGED, 2)

    assert [a.tokens.tolist() for a in out["old"]] != [a.tokens.tolist() for a in out["new"]]
    assert {a.policy for a in out["new"]} == {"new"}


def test_sampling_before_load_is_refused():
    with pytest.raises(RuntimeError, match="load a policy"):
        next(Engine(lambda _: trunk_of("llama")[0], chat()).sample(RAGGED, 1, seed=0, max_tokens=3))


def test_a_prompt_too_long_for_the_context_is_refused_by_name():
    trunk, _ = trunk_of("llama")
    with pytest.raises(DataError, match="Prompt long has 9 tokens; with 60 for the answer"):
        drawn(engine(trunk), RAGGED, 1, max_tokens=60)


def test_draws_follow_the_softmax_and_carry_its_logarithm():
    # 20 000 draws from 600 tokens in three blocks: chi-square over the 40 likeliest and the rest
    torch.manual_seed(0)
    logits = torch.randn(600) * 2
    count = 20_000
    uniform = torch.from_numpy(np.random.default_rng(0).random(count))
    tokens, logp = draw(logits.expand(count, -1), uniform, temperature=0.5)
    want = torch.log_softmax(logits / 0.5, 0)

    assert_close(logp, want[tokens], atol=1e-5, rtol=0)
    top = torch.topk(want, 40).indices
    seen = torch.bincount(tokens, minlength=600).double()
    expected = want.double().exp() * count
    observed = [*seen[top].tolist(), count - float(seen[top].sum())]
    assert chisquare(observed, [*expected[top].tolist(), count - float(expected[top].sum())]).pvalue > 0.01
    assert {int(t) // BLOCK for t in tokens} == {0, 1, 2}


def test_draw_inverts_the_distribution_function():
    # probabilities 1/2, 1/4, 1/8, 1/8: the steps of the distribution function are 0.5, 0.75, 0.875
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    uniform = torch.tensor([0.0, 0.499, 0.501, 0.749, 0.751, 0.874, 0.876, 1 - 2**-53], dtype=torch.float64)
    tokens, logp = draw(logits.expand(8, -1), uniform)

    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert_close(logp, logits[tokens])


def test_an_impossible_token_is_never_drawn():
    logits = torch.full((3, 1000), -torch.inf)
    logits[:, 700] = 0.0
    tokens, logp = draw(logits, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))

    assert tokens.tolist() == [700, 700, 700]
    assert logp.tolist() == [0.0, 0.0, 0.0]
