"""Which models the own forward takes, and that dropout is off in all of them."""

import pytest
import torch
from tiny import ANSWERS, ASKED, OWN, RAGGED, chat, hf_model, llama_of, oracle_logits, oracle_logp, trunk_of
from torch.testing import assert_close
from transformers import (
    Gemma3TextConfig,
    Gemma4TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from backflip.models.families import why_not
from backflip.models.generic import Generic, has_plain_head
from backflip.models.llama import from_state
from backflip.models.packed import pack
from backflip.sampling.score import Reader


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(), LlamaConfig(hidden_act="gelu_pytorch_tanh"), MistralConfig(), MistralConfig(sliding_window=None),
     Qwen2Config(use_sliding_window=True), Qwen3Config(), Gemma3TextConfig()],
)  # fmt: skip
def test_the_own_forward_takes_llama_and_its_like(config: PreTrainedConfig):
    assert why_not(config) is None


LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (LlamaConfig(hidden_act="gelu"), "no activation gelu"),
        (LlamaConfig(attention_bias=True), "its biases"),
        (LlamaConfig(mlp_bias=True), "its biases"),
        (LlamaConfig(rope_parameters=LINEAR | {"rope_type": "dynamic"}), "no dynamic scaling"),
        (LlamaConfig(rope_parameters=LINEAR | {"partial_rotary_factor": 0.5}), "whole heads"),
        (Gemma3TextConfig(rope_parameters={"full_attention": LINEAR | {"rope_type": "dynamic"}}), "no dynamic scaling"),
        (Gemma3TextConfig(final_logit_softcapping=30.0), "cap logits"),
        (Gemma3TextConfig(attn_logit_softcapping=50.0), "cap logits"),
        (Gemma3TextConfig(use_bidirectional_attention=True), "left to right"),
        (Gemma3TextConfig(attention_bias=True), "its biases"),
        (Gemma4TextConfig(), "not know this family"),
        (PreTrainedConfig(model_type="gemma"), "not know this family"),
    ],
)
def test_the_own_forward_leaves_what_it_would_compute_wrongly_to_hugging_face(config: PreTrainedConfig, why: str):
    assert why in str(why_not(config))


@pytest.mark.parametrize("family", ["mistral-window", "qwen3-window", "gemma3"])
def test_a_token_reads_no_further_back_than_its_window(family: str):
    # the first layer, seen alone, looks back 5 tokens: itself and four before it
    trunk = llama_of(hf_model(family, layers=1, **({"max_window_layers": 0} if family == "qwen3-window" else {})))
    one, two = (
        trunk.hidden(pack([[first, 21, 22, 23]], [[24, 25, 26]], [0])).final for first in (20, 30)
    )  # the second answer token, 5 after the first of the prompt, is the first that does not see it

    assert [bool((a != b).any()) for a, b in zip(one, two, strict=True)] == [True] * 4 + [True, False, False]


def test_gemmas_two_kinds_of_layers_turn_heads_by_their_own_parameters():
    # the layers differ in rotary parameters alone: with one base for both kinds the logits are others
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 10.0}, "full_attention": LINEAR}
    hf = hf_model("gemma3", rope_parameters=rope, sliding_window=64)
    other = hf_model("gemma3", rope_parameters=rope | {"sliding_attention": LINEAR}, sliding_window=64)
    got = [Reader(llama_of(m), chat()).read(ASKED, ANSWERS).logp for m in (hf, other)]
    row = oracle_logp(hf, chat().encode(ASKED[2]), ANSWERS[2].tokens.tolist())

    assert_close(got[0][2, : len(row)], row, atol=1e-4, rtol=0)
    assert (got[0] - got[1]).abs().max() > 0.01


def test_gemmas_embeddings_are_scaled_as_bfloat16_rounds_the_scale():
    # sqrt(32) = 5.656854; bfloat16 has 5.65625
    hf = hf_model("gemma3").bfloat16()
    trunk = from_state(hf.config, hf.state_dict(), torch.bfloat16, "cpu")
    kept = trunk.hidden(pack([[20, 21]]), keep=[0]).kept[0]

    assert torch.equal(kept, hf(input_ids=torch.tensor([[20, 21]]), output_hidden_states=True).hidden_states[0][0])
    assert trunk.embedding_scale == 5.65625


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_the_fallback_computes_what_the_own_forward_computes(family: str):
    hf = hf_model(family)
    own, fallback = (Reader(t, chat()).read(ASKED, ANSWERS, layers=(1,)) for t in (llama_of(hf), Generic(hf)))

    assert_close(own.logp, fallback.logp, atol=1e-4, rtol=0)
    assert_close(own.pooled[1], fallback.pooled[1], atol=1e-4, rtol=0)


def test_adapters_have_the_same_layers_in_both_forwards():
    hf = hf_model("qwen3")

    assert llama_of(hf).linear_shapes() == Generic(hf).linear_shapes()


@pytest.mark.parametrize(
    ("family", "dropout"),
    [
        ("llama", {"attention_dropout": 0.5}),
        ("qwen2", {"attention_dropout": 0.5}),
        ("gpt2", {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}),
    ],
)
def test_dropout_is_off(family: str, dropout: dict[str, float]):
    trunk, hf = trunk_of(family, **dropout)
    hf.train()  # as a freshly built model is
    wrapped = Generic(hf) if family == "gpt2" else trunk
    one, two = (Reader(wrapped, chat()).read(ASKED, ANSWERS).logp for _ in range(2))

    assert torch.equal(one, two)
    assert torch.equal(one, Reader(trunk, chat()).read(ASKED, ANSWERS).logp)


def test_the_weights_are_frozen():
    assert not any(p.requires_grad for p in Generic(hf_model("gpt2")).model.parameters())


@pytest.mark.parametrize("family", OWN)
def test_weights_come_back_under_their_hugging_face_names(family: str):
    hf = hf_model(family)
    state = llama_of(hf).state()
    want = {k: v for k, v in hf.state_dict().items() if not (k == "lm_head.weight" and hf.config.tie_word_embeddings)}

    assert state.keys() == want.keys()
    assert all(torch.equal(state[k], want[k]) for k in want)


@pytest.mark.parametrize("family", [*OWN, "gpt2"])
def test_decoding_ragged_prompts_gives_hugging_faces_logits(family: str):
    trunk, hf = trunk_of(family)
    texts = [chat().encode(p) for p in RAGGED]
    with torch.inference_mode():
        decoder = trunk.start(6, 4)
        logits = decoder.admit(range(6), texts, [2, 2, 2])
        rows = [t for t in texts for _ in range(2)]
        for step in range(3):
            for row, text in enumerate(rows):
                assert_close(logits[row], oracle_logits(hf, text)[-1], atol=1e-4, rtol=1e-4)
            tokens = torch.tensor([10 + 7 * step + i for i in range(len(rows))])
            if step == 1:  # drop all but three sequences
                kept = torch.tensor([0, 3, 5])
                decoder.keep(kept)
                rows, tokens = [rows[i] for i in kept.tolist()], tokens[kept]
            rows = [[*text, int(t)] for text, t in zip(rows, tokens, strict=True)]
            logits = decoder.step(tokens, range(len(rows)))
    for row, text in enumerate(rows):
        assert_close(logits[row], oracle_logits(hf, text)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", OWN)
def test_sequences_that_take_rows_of_others_get_hugging_faces_logits(family: str):
    # Three rows; then a longer prompt takes row 0 and a prompt that was read before takes row 2 once more.
    trunk, hf = trunk_of(family)
    texts = [chat().encode(p) for p in RAGGED]
    long = [7 + i % 200 for i in range(45)]
    with torch.inference_mode():
        decoder = trunk.start(3, 4)
        decoder.admit([2, 0, 1], texts, [1, 1, 1])
        rows = [texts[1], texts[2], texts[0]]
        decoder.step(torch.tensor([11, 12]), [0, 1])  # row 2 waits
        rows = [[*rows[0], 11], [*rows[1], 12], rows[2]]
        first = decoder.admit([2, 0], [texts[2], long], [1, 1])
        rows = [long, rows[1], texts[2]]
        assert_close(first[0], oracle_logits(hf, rows[2])[-1], atol=1e-4, rtol=1e-4)
        assert_close(first[1], oracle_logits(hf, rows[0])[-1], atol=1e-4, rtol=1e-4)
        for step in range(3):
            tokens = torch.tensor([20 + step, 30 + step, 40 + step])
            logits = decoder.step(tokens, [0, 1, 2])
            rows = [[*text, int(t)] for text, t in zip(rows, tokens, strict=True)]
            for row, text in enumerate(rows):
                assert_close(logits[row], oracle_logits(hf, text)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_sequence_that_waits_goes_on_as_if_it_had_not(family: str):
    trunk, hf = trunk_of(family)
    texts = [chat().encode(p) for p in RAGGED]
    with torch.inference_mode():
        decoder = trunk.start(3, 4)
        decoder.admit(range(3), texts, [1, 1, 1])
        decoder.step(torch.tensor([11, 12]), [0, 2])
        logits = decoder.step(torch.tensor([21, 22]), [0, 1])

    assert_close(logits[0], oracle_logits(hf, [*texts[0], 11, 21])[-1], atol=1e-4, rtol=1e-4)
    assert_close(logits[1], oracle_logits(hf, [*texts[1], 22])[-1], atol=1e-4, rtol=1e-4)


def test_a_generic_decoder_refuses_to_replace_sequences():
    trunk, _ = trunk_of("gpt2")
    with torch.inference_mode():
        decoder = trunk.start(1, 4)
        decoder.admit([0], [[7, 8]], [1])
        with pytest.raises(ValueError, match="cannot be replaced"):
            decoder.admit([0], [[7, 8]], [1])


def test_logits_changed_after_the_output_layer_are_noticed():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 50, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
    capped, plain = (Gemma2ForCausalLM(Gemma2Config(**small, final_logit_softcapping=c)) for c in (0.1, None))

    assert not has_plain_head(Generic(capped))
    assert has_plain_head(Generic(plain))
