"""LoRA as an argument of the forward: its role is decided by the caller, and nothing stays behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ANSWERS, ASKED, chat, llama_of, trained, trunk_of
from torch import Tensor
from torch.testing import assert_close

from backflip.core.errors import DataError
from backflip.models.adapters import (
    Adapter,
    adapted_linear,
    adapter_from_state,
    changed_weight,
    new_adapter,
    upper_layers,
)
from backflip.models.generic import Generic
from backflip.models.logp import token_logp
from backflip.models.packed import Packed
from backflip.models.save import save_adapter
from backflip.models.trunk import Trunk
from backflip.sampling.score import Reader, pack_answers

both = pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])


def batch_of(trunk: Trunk) -> Packed:
    return pack_answers(chat(), ASKED, ANSWERS, trunk.device)


def policy_loss(trunk: Trunk, adapter: Adapter, *, checkpoint: bool) -> Tensor:
    """Mean log-probability of the answers, with gradient to the adapter."""
    batch = batch_of(trunk)
    final = trunk.hidden(batch, adapter, checkpoint=checkpoint).final
    mask = batch.answer_mask
    rows, targets = final[batch.predict_rows[mask]], batch.ids[batch.answer_rows[mask]]
    return token_logp(rows, trunk.head(), targets, 0.9).logp.mean()


def gradients(adapter: Adapter) -> list[Tensor]:
    return [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in adapter.parameters()]


@both
def test_a_fresh_adapter_changes_nothing(family: str):
    trunk, _ = trunk_of(family)
    adapter = new_adapter(trunk.linear_shapes(), rank=4, alpha=8.0, seed=0)
    plain, fresh = (trunk.hidden(batch_of(trunk), a).final for a in (None, adapter))

    assert torch.equal(plain, fresh)
    assert all((a != 0).any() for a in adapter.a.values())  # else it could not learn


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "gpt2"])
def test_merged_weights_equal_the_adapter_as_an_argument(family: str):
    trunk, _ = trunk_of(family)
    adapter = trained(trunk)
    argument = trunk.hidden(batch_of(trunk), adapter).final
    merged = trunk.merged(adapter).hidden(batch_of(trunk)).final

    assert_close(merged, argument, atol=1e-4, rtol=1e-4)
    assert (argument - trunk.hidden(batch_of(trunk)).final).abs().max() > 0.1


@both
def test_merging_leaves_the_trunk_untouched(family: str):
    trunk, _ = trunk_of(family)
    before = trunk.hidden(batch_of(trunk)).final
    merged = trunk.merged(trained(trunk))

    assert merged is not trunk
    assert torch.equal(trunk.hidden(batch_of(trunk)).final, before)
    assert trunk.merged(None) is trunk


@pytest.mark.parametrize("part", ["self_attn.v_proj", "mlp.up_proj", "self_attn.k_proj"])
def test_an_adapter_may_change_one_of_the_fused_layers_only(part: str):
    trunk, hf = trunk_of("llama")
    shapes = {n: s for n, s in trunk.linear_shapes().items() if n.endswith(part)}
    adapter = new_adapter(shapes, rank=2, alpha=4.0, seed=0)
    with torch.no_grad():
        for name, b in adapter.b.items():
            b.normal_(generator=torch.Generator().manual_seed(1))
            hf.get_submodule(name).weight += adapter.delta(name)
    want = Reader(llama_of(hf), chat()).read(ASKED, ANSWERS).logp
    got = Reader(trunk, chat()).read(ASKED, ANSWERS, adapter).logp
    merged = Reader(trunk.merged(adapter), chat()).read(ASKED, ANSWERS).logp

    assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert_close(merged, want, atol=1e-4, rtol=1e-4)


@both
def test_a_value_pass_between_forward_and_backward_changes_no_gradient(family: str):
    # policy forward, value and reference forwards, value backward, then the policy's backward with
    # recomputation: the recomputed activations must be the policy's.
    trunk, _ = trunk_of(family)
    policy, value = trained(trunk, seed=1), trained(trunk, seed=2)
    policy_loss(trunk, policy, checkpoint=False).backward()
    want = gradients(policy)
    for p in policy.parameters():
        p.grad = None

    loss = policy_loss(trunk, policy, checkpoint=True)
    value_loss = trunk.hidden(batch_of(trunk), value, checkpoint=True).final.square().mean()
    trunk.hidden(batch_of(trunk), None)
    value_loss.backward()
    with torch.no_grad():
        for p in value.parameters():
            p += 1.0
    loss.backward()

    assert max(float(g.abs().max()) for g in want) > 1e-3
    for got, expected in zip(gradients(policy), want, strict=True):
        assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_the_reference_is_unaffected_by_updates_of_the_policy():
    trunk, _ = trunk_of("llama")
    policy = trained(trunk)
    optimiser = torch.optim.Adam(list(policy.parameters()), lr=0.1)
    before = trunk.hidden(batch_of(trunk)).final
    for _ in range(2):
        optimiser.zero_grad()
        (-policy_loss(trunk, policy, checkpoint=True)).backward()
        optimiser.step()

    assert torch.equal(trunk.hidden(batch_of(trunk)).final, before)


def test_gradients_reach_every_tensor_of_the_adapter():
    trunk, _ = trunk_of("llama")
    adapter = trained(trunk)
    policy_loss(trunk, adapter, checkpoint=False).backward()
    dead = [n for n in adapter.a if not (adapter.a[n].grad.any() and adapter.b[n].grad.any())]  # type: ignore[union-attr]

    assert dead == []


@both
def test_the_adapters_gradient_is_the_slope_of_the_loss(family: str):
    # central difference along a random direction
    trunk, _ = trunk_of(family)
    adapter = trained(trunk)
    policy_loss(trunk, adapter, checkpoint=False).backward()
    draw = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=draw) for p in adapter.parameters()]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients(adapter), direction, strict=True))

    def moved(by: float) -> float:
        with torch.no_grad():
            for p, d in zip(adapter.parameters(), direction, strict=True):
                p += by * d
            out = float(policy_loss(trunk, adapter, checkpoint=False))
            for p, d in zip(adapter.parameters(), direction, strict=True):
                p -= by * d
        return out

    step = 1e-3
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_a_change_is_alpha_over_rank_times_b_times_a():
    # B A = [[1], [2]] [[3, 4]] = [[3, 4], [6, 8]]; alpha / rank = 2 / 1
    adapter = Adapter({"x": torch.tensor([[3.0, 4.0]])}, {"x": torch.tensor([[1.0], [2.0]])}, 1, 2.0)

    assert adapter.delta("x").tolist() == [[6.0, 8.0], [12.0, 16.0]]


def test_a_saved_adapter_comes_back_with_its_parameters_in_the_same_order():
    # an optimiser's moments are stored by position: another order would give them to the wrong tensors
    trunk, _ = trunk_of("llama")
    adapter = trained(trunk)
    state = dict(reversed(adapter.state().items()))
    back = adapter_from_state(state, rank=adapter.rank, alpha=adapter.alpha)

    for p, q in zip(adapter.parameters(), back.parameters(), strict=True):
        assert torch.equal(p, q)
        assert q.requires_grad
        assert q.dtype == torch.float32


def test_an_adapter_that_is_no_plain_lora_is_refused():
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    halves = {f"{name}.lora_A.weight": torch.zeros(1, 2), f"{name}.lora_B.weight": torch.zeros(2, 1)}

    with pytest.raises(DataError, match="lora_magnitude_vector, which is no plain LoRA"):
        adapter_from_state(halves | {f"{name}.lora_magnitude_vector": torch.zeros(2)}, rank=1, alpha=1.0)
    with pytest.raises(DataError, match="one half of model.layers.0.self_attn.q_proj"):
        adapter_from_state(dict([*halves.items()][:1]), rank=1, alpha=1.0)


def test_a_fresh_adapter_depends_on_its_seed_and_layer_only():
    shapes = {"x.0.q": (4, 6), "x.1.q": (4, 6)}
    one, two = (new_adapter(s, rank=2, alpha=4.0, seed=7) for s in (shapes, dict(reversed(shapes.items()))))
    other = new_adapter(shapes, rank=2, alpha=4.0, seed=8)

    assert torch.equal(one.a["x.0.q"], two.a["x.0.q"])
    assert not torch.equal(one.a["x.0.q"], one.a["x.1.q"])
    assert not torch.equal(one.a["x.0.q"], other.a["x.0.q"])
    assert float(one.a["x.0.q"].detach().abs().max()) <= 1 / np.sqrt(6)


def full(trunk: Trunk, share: float = 1.0) -> Adapter:
    """A full change that is not zero."""
    adapter = new_adapter(upper_layers(trunk.linear_shapes(), share), rank=0, alpha=8.0, seed=0)
    draw = torch.Generator().manual_seed(1)
    for p in adapter.parameters():
        p.data.normal_(0, 0.1, generator=draw)
    return adapter


@both
def test_a_full_change_is_zero_at_first_and_merges_to_what_the_forward_computes(family: str):
    trunk, _ = trunk_of(family)
    plain = trunk.hidden(batch_of(trunk)).final
    fresh = new_adapter(trunk.linear_shapes(), rank=0, alpha=8.0, seed=0)
    moved = full(trunk)
    argument = trunk.hidden(batch_of(trunk), moved).final

    assert torch.equal(trunk.hidden(batch_of(trunk), fresh).final, plain)
    assert_close(trunk.merged(moved).hidden(batch_of(trunk)).final, argument, atol=1e-5, rtol=1e-5)
    assert (argument - plain).abs().max() > 0.1
    assert torch.equal(trunk.hidden(batch_of(trunk)).final, plain)


@both
def test_the_gradient_of_a_full_change_is_that_of_the_weight_itself(family: str):
    trunk, oracle = trunk_of(family)
    adapter = new_adapter(trunk.linear_shapes(), rank=0, alpha=8.0, seed=0)
    policy_loss(trunk, adapter, checkpoint=False).backward()
    body = Generic(oracle)
    merged = {n: m.weight.requires_grad_() for n, m in body.linears.items()}
    policy_loss(body, None, checkpoint=False).backward()  # type: ignore[arg-type]

    assert merged.keys() == adapter.b.keys()
    for name, weight in merged.items():
        expected = weight.grad.T if family == "gpt2" else weight.grad
        assert_close(adapter.b[name].grad, expected, atol=1e-5, rtol=1e-3)


def test_a_saved_full_change_comes_back_and_is_no_adapter_for_peft(tmp_path: Path):
    trunk, _ = trunk_of("llama")
    moved = full(trunk, 0.5)
    back = adapter_from_state(moved.state(), rank=0, alpha=8.0)

    assert [p.tolist() for p in back.parameters()] == [p.tolist() for p in moved.parameters()]
    assert sorted(back.b) == sorted(moved.b) != sorted(trunk.linear_shapes())
    with pytest.raises(ValueError, match="save the merged model"):
        save_adapter(moved, tmp_path / "adapter", "base")


def test_the_upper_half_of_five_blocks_is_the_last_two():
    # round(5 * 0.5) = 2: blocks 3 and 4; what lies outside the blocks is left out
    shapes = {f"model.layers.{i}.q": (1, 1) for i in range(5)} | {"model.extra": (1, 1)}

    assert list(upper_layers(shapes, 0.5)) == ["model.layers.3.q", "model.layers.4.q"]
    assert list(upper_layers(shapes, 0.0)) == ["model.layers.4.q"]
    assert len(upper_layers(shapes, 1.0)) == 5


@pytest.mark.parametrize("rank", [0, 3])
def test_the_folded_product_has_the_gradients_of_the_sum_it_stands_for(rank: int) -> None:
    draw = torch.Generator().manual_seed(0)
    layers = {"q": 4, "k": 2, "v": 3}  # only two of them adapted
    adapter = new_adapter({"q": (4, 5), "v": (3, 5)}, rank=rank, alpha=6, seed=0)
    for b in adapter.b.values():
        b.data.copy_(torch.randn(b.shape, generator=draw))
    weight, bias = torch.randn(9, 5, generator=draw), torch.randn(9, generator=draw)
    x, weigh = torch.randn(7, 5, generator=draw).requires_grad_(), torch.randn(7, 9, generator=draw)
    folded = changed_weight(weight, adapter, layers).detach()
    learned = [x, *adapter.parameters()]
    ours = torch.autograd.grad((adapted_linear(x, folded, bias, adapter, layers) * weigh).sum(), learned)
    plain = x @ changed_weight(weight, adapter, layers).T + bias
    for mine, other in zip(ours, torch.autograd.grad((plain * weigh).sum(), learned), strict=True):
        assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_the_folded_model_is_made_again_when_its_adapter_has_moved() -> None:
    trunk, _ = trunk_of("llama")
    adapter = trained(trunk)
    first = trunk.merged(adapter)
    assert trunk.merged(adapter) is first
    with torch.no_grad():
        next(adapter.parameters()).mul_(2)
    second = trunk.merged(adapter)
    assert second is not first
    assert not torch.equal(second.hidden(batch_of(trunk)).final, first.hidden(batch_of(trunk)).final)
    assert trunk.merged(trained(trunk)) is not second
