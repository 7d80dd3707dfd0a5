"""Reading given answers: the log-probabilities are those of a plain Hugging Face forward."""

from dataclasses import replace

import pytest
import torch
from tiny import ANSWERS, ASKED, OWN, RAGGED, answer, chat, oracle_logits, oracle_logp, trained, trunk_of
from torch.testing import assert_close

from backflip.core.errors import DataError
from backflip.models.trunk import Trunk
from backflip.policies.gradient import trained_logp
from backflip.policies.plan import PPO
from backflip.policies.state import fresh_state
from backflip.sampling.score import Lower, Reader, answer_batches, middle_layer

FAMILIES = [*OWN, "gpt2"]


def reader(trunk: Trunk, **more: object) -> Reader:
    return Reader(trunk, chat(), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_a_plain_hugging_face_forward(family: str):
    trunk, hf = trunk_of(family)
    out = reader(trunk).read(ASKED, ANSWERS)

    for row, (p, a) in enumerate(zip(ASKED, ANSWERS, strict=True)):
        n = len(a.tokens)
        assert_close(out.logp[row, :n], oracle_logp(hf, chat().encode(p), a.tokens.tolist()), atol=1e-4, rtol=0)
        assert out.mask[row].tolist() == [True] * n + [False] * (7 - n)
        assert (out.logp[row, n:] == 0).all()
        assert (out.entropy[row, n:] == 0).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_are_divided_by_the_temperature(family: str):
    trunk, hf = trunk_of(family)
    out = reader(trunk, temperature=0.7).read(ASKED, ANSWERS)

    for row, (p, a) in enumerate(zip(ASKED, ANSWERS, strict=True)):
        want = oracle_logp(hf, chat().encode(p), a.tokens.tolist(), temperature=0.7)
        assert_close(out.logp[row, : len(want)], want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_entropy_is_that_of_the_full_distribution(family: str):
    trunk, hf = trunk_of(family)
    out = reader(trunk, temperature=0.7).read(ASKED[3:4], ANSWERS[3:4])
    before = chat().encode(ASKED[3])
    logits = oracle_logits(hf, [*before, *ANSWERS[3].tokens.tolist()])[len(before) - 1 : -1]

    assert_close(out.entropy[0], torch.distributions.Categorical(logits=logits / 0.7).entropy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("layers", [1, 3])
def test_hidden_states_are_hugging_faces(family: str, layers: int):
    trunk, hf = trunk_of(family, layers=layers)
    middle = middle_layer(layers)
    out = reader(trunk).read(ASKED, ANSWERS, layers=(middle, layers), states=True)

    assert out.states is not None
    for row, (p, a) in enumerate(zip(ASKED, ANSWERS, strict=True)):
        before = chat().encode(p)
        ids = torch.tensor([[*before, *a.tokens.tolist()]])
        with torch.no_grad():
            states = hf(input_ids=ids, output_hidden_states=True).hidden_states
        n = len(a.tokens)
        for layer in (middle, layers):
            assert_close(out.pooled[layer][row], states[layer][0, len(before) :].mean(0), atol=1e-4, rtol=0)
        assert_close(out.last[row], states[-1][0, -1], atol=1e-4, rtol=0)
        assert_close(out.states[row, :n], states[-1][0, len(before) - 1 : -1], atol=1e-4, rtol=0)
        assert (out.states[row, n:] == 0).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_reading_does_not_depend_on_the_answers_beside_it(family: str):
    trunk, _ = trunk_of(family)
    together = reader(trunk).read(ASKED, ANSWERS, layers=(1,))

    for row, (p, a) in enumerate(zip(ASKED, ANSWERS, strict=True)):
        alone = reader(trunk).read([p], [a], layers=(1,))
        assert_close(together.logp[row, : len(a.tokens)], alone.logp[0], atol=1e-5, rtol=0)
        assert_close(together.last[row], alone.last[0], atol=1e-5, rtol=0)
        assert_close(together.pooled[1][row], alone.pooled[1][0], atol=1e-5, rtol=0)


def test_small_forwards_give_what_one_big_one_gives():
    trunk, _ = trunk_of("llama")
    big, small = (reader(trunk, micro=m).read(ASKED, ANSWERS, layers=(1,), states=True) for m in (32, 2))

    for name in ("mask", "logp", "entropy", "last", "states"):
        assert_close(getattr(big, name), getattr(small, name), atol=1e-5, rtol=0)
    assert_close(big.pooled[1], small.pooled[1], atol=1e-5, rtol=0)


def test_the_adapter_is_an_argument_and_leaves_nothing_behind():
    trunk, _ = trunk_of("llama")
    adapter, read = trained(trunk), reader(trunk)
    before = read.read(ASKED, ANSWERS).logp
    with_adapter = read.read(ASKED, ANSWERS, adapter).logp
    after = read.read(ASKED, ANSWERS).logp

    assert torch.equal(before, after)
    assert (with_adapter - before).abs().max() > 0.1


def test_the_reference_is_read_once_for_the_same_answers():
    trunk, _ = trunk_of("llama")
    read = reader(trunk)
    first = read.reference(ASKED, ANSWERS)

    assert read.reference(ASKED, ANSWERS) is first
    assert read.reference(ASKED[:2], ANSWERS[:2]) is not first
    assert_close(first.logp, read.read(ASKED, ANSWERS).logp)


def test_nothing_to_read_is_refused():
    trunk, _ = trunk_of("llama")
    with pytest.raises(ValueError, match="at least one token"):
        reader(trunk).read([], [])
    empty = replace(ANSWERS[0], tokens=ANSWERS[0].tokens[:0])
    with pytest.raises(ValueError, match="at least one token"):
        reader(trunk).read([RAGGED[0]], [empty])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_answer_beyond_the_context_is_refused_and_one_that_fills_it_is_read(family: str):
    trunk, _ = trunk_of(family)
    before = len(chat().encode(ASKED[0]))
    fills, beyond = (answer(ASKED[0].id, [30] * (64 - before + more)) for more in (0, 1))

    assert torch.isfinite(reader(trunk).read(ASKED[:1], [fills]).logp).all()
    with pytest.raises(DataError) as told:
        reader(trunk).read([ASKED[1], ASKED[0]], [ANSWERS[1], beyond])
    fact, _, cure = str(told.value).splitlines()
    assert fact == f"Prompt {ASKED[0].id} and an answer to it have 65 tokens, more than the model's context of 64."
    assert "sampling.max_tokens" in cure


def test_batches_cover_every_answer_once():
    # 5 answers by 2: rows 0-1, 2-3, 4
    assert list(answer_batches(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(answer_batches(0, 2)) == []


def test_the_middle_layer_is_half_way_and_never_the_embedding():
    assert [middle_layer(n) for n in (1, 2, 3, 30)] == [1, 1, 1, 15]


@pytest.mark.parametrize("family", [*OWN, "gpt2"])
def test_what_begins_above_the_lower_layers_reads_and_learns_the_same(family: str):
    trunk, _ = trunk_of(family, layers=4)
    adapter = trained(trunk, share=0.5)
    plain, known = reader(trunk), reader(trunk)
    known.reference(ASKED, ANSWERS)
    rows = [3, 1]
    asked, said = [ASKED[i] for i in rows], [ANSWERS[i] for i in rows]

    assert known.after(asked, said, adapter) is not None
    assert_close(known.read(ASKED, ANSWERS, adapter).logp, plain.read(ASKED, ANSWERS, adapter).logp)
    state = replace(fresh_state(trunk, PPO(), 0), adapter=adapter)
    grads = []
    for each in (plain, known):
        logp, _ = trained_logp(state, each, asked, said)
        grads.append(torch.autograd.grad(logp.sum(), list(adapter.parameters())))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b)


def test_lower_layers_are_not_computed_twice():
    trunk, _ = trunk_of("llama", layers=4)
    adapter = trained(trunk, share=0.5)
    out = reader(trunk)
    out.reference(ASKED, ANSWERS)
    want = out.read(ASKED, ANSWERS, adapter).logp
    trunk.merged(adapter).blocks[0].o.fill_(float("nan"))

    assert_close(out.read(ASKED, ANSWERS, adapter).logp, want)


def test_a_forward_begins_at_the_bottom_where_lower_states_would_be_wrong_or_missing():
    trunk, _ = trunk_of("llama", layers=4)
    upper, deep = (trained(trunk, share=share) for share in (0.5, 0.75))
    out = reader(trunk)
    out.reference(ASKED[:2], ANSWERS[:2])

    assert out.after(ASKED[:2], ANSWERS[:2], upper) is not None
    assert out.after(ASKED[:2], ANSWERS[:2], deep) is None  # it changes a layer below the kept states
    assert out.after(ASKED[:2], ANSWERS[:2], None) is None
    assert out.after(ASKED, ANSWERS, upper) is None  # not all of them were read
    out.reference(ASKED[2:], ANSWERS[2:])
    assert out.after(ASKED[:2], ANSWERS[:2], upper) is None


def test_lower_states_beyond_their_room_are_not_kept():
    trunk, _ = trunk_of("llama", layers=4)
    lower = Lower(2, room=0)
    reader(trunk).read(ASKED, ANSWERS, layers=(2,), lower=lower)

    assert lower.of(ASKED, ANSWERS) is None
