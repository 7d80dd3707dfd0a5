"""Which models the own forward takes, and that dropout is off in all of them."""

import pytest
import torch
from tiny import ANSWERS, ASKED, OWN, RAGGED, chat, hf_model, llama_of, oracle_logits, trunk_of
from torch.testing import assert_close
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from backflip.models.generic import Generic, has_plain_head
from backflip.models.llama import supports
from backflip.sampling.score import Reader


def test_the_own_forward_takes_the_llama_family():
    taken = [LlamaConfig(), MistralConfig(sliding_window=None), Qwen2Config(), Qwen3Config()]

    assert all(supports(c) for c in taken)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(hidden_act="gelu"),
        LlamaConfig(attention_bias=True),
        LlamaConfig(mlp_bias=True),
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        MistralConfig(sliding_window=8),
        Qwen2Config(use_sliding_window=True, sliding_window=8, max_window_layers=0),
        PreTrainedConfig(model_type="gemma"),
    ],
    ids=["activation", "attention bias", "mlp bias", "dynamic positions", "window", "qwen window", "family"],
)
def test_the_own_forward_leaves_what_it_would_compute_wrongly_to_hugging_face(config: PreTrainedConfig):
    config.hidden_act = getattr(config, "hidden_act", "silu")

    assert not supports(config)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
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
        decoder, logits = trunk.start(texts, 2, 4)
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
            logits = decoder.step(tokens)
    for row, text in enumerate(rows):
        assert_close(logits[row], oracle_logits(hf, text)[-1], atol=1e-4, rtol=1e-4)


def test_logits_changed_after_the_output_layer_are_noticed():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 50, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
    capped, plain = (Gemma2ForCausalLM(Gemma2Config(**small, final_logit_softcapping=c)) for c in (0.1, None))

    assert not has_plain_head(Generic(capped))
    assert has_plain_head(Generic(plain))
