"""Save a model for others: adapters in peft's format, merged models as plain Hugging Face folders, a card in each."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from backflip.models.adapters import Adapter
from backflip.models.generic import Generic
from backflip.models.trunk import Trunk

Kind = Literal["adapter", "merged", "sft", "reward"]

WHAT = {
    "adapter": "A LoRA adapter for {base}, optimised against a reward model that was fitted to pairwise judgements.",
    "merged": "{base} after optimisation against a reward model that was fitted to pairwise judgements; "
    "the adapter is merged into the weights.",
    "sft": "{base} after supervised fine-tuning on demonstrations.",
    "reward": "A reward model: it reads a request and an answer and gives one number, higher where the raters "
    "would sooner choose the answer. 0 is the mean of the untouched {base}, 1 its standard deviation.",
}
LOAD = "from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(folder)"
USE = {
    "adapter": "from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, folder)",
    "merged": LOAD,
    "sft": LOAD,
    "reward": "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
    "tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)\n"
    "model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)\n"
    "score = model(input_ids, attention_mask).logits[:, 0]  # request and answer, as the chat template has it",
}
MEANT = {
    "adapter": "For research on learning from judgements, and for the taste it was made to learn.",
    "merged": "For research on learning from judgements, and for the taste it was made to learn.",
    "sft": "For research on learning from judgements, as the model that a policy starts from.",
    "reward": "For ranking answers to requests like those it was fitted on. Far from them, and under a policy that "
    "climbs it hard, its score stops meaning what the raters meant: measure, do not trust.",
}


def save_adapter(adapter: Adapter, folder: Path, base: str, *, plan: str = "", votes: int | None = None) -> None:
    """Write `adapter_model.safetensors`, `adapter_config.json` and a card, as peft does.

    `base` is the folder or Hub id of the model it was made for.
    Raises: OSError when the disk is full; ValueError for a full change, which peft's format does not know.
    """
    if not adapter.rank:
        raise ValueError("a full change is no adapter in peft's format: save the merged model")
    from peft import LoraConfig, TaskType  # slow to import, and only needed here

    folder.mkdir(parents=True, exist_ok=True)
    whole = float(adapter.alpha).is_integer()
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=adapter.rank,
        lora_alpha=int(adapter.alpha) if whole else adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=sorted(adapter.a),
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors = {k: t.cpu().contiguous() for k, t in adapter.state().items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(model_card("adapter", base, plan=plan, votes=votes), encoding="utf-8")


def save_merged(
    trunk: Trunk,
    adapter: Adapter | None,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    base: str = "",
    plan: str = "",
    votes: int | None = None,
    stops: Sequence[int] = (),
) -> None:
    """Write the trunk with the adapter folded in: config, safetensors, tokenizer, generation config and a card.

    `stops` are the ids that end an answer (`Chat.stops`); without them a Hugging Face model keeps its own.
    Raises: OSError when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merged = trunk.merged(adapter)
    if isinstance(merged, Generic):
        merged.model.save_pretrained(folder)
    else:
        config = copy.deepcopy(merged.config)
        config.dtype = merged.dtype
        config.architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
        config.save_pretrained(folder)
        save_torch_state_dict({k: t.clone() for k, t in merged.state().items()}, folder)
    if stops:
        ends = GenerationConfig(eos_token_id=[int(s) for s in stops])  # type: ignore[no-untyped-call]
        ends.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card("merged", base, plan=plan, votes=votes), encoding="utf-8")


def model_card(kind: Kind, base: str, *, plan: str = "", votes: int | None = None) -> str:
    """The README.md of a saved model: what it is, where it comes from, what it is for. `plan` is the run's TOML."""
    local = not base or Path(base).is_absolute() or Path(base).exists()
    name = Path(base).name if local else base
    head = ["---", f"library_name: {'peft' if kind == 'adapter' else 'transformers'}", "tags: [rlhf, backflip]"]
    head += [] if local else [f"base_model: {base}"]
    judged = "an unknown number of votes" if votes is None else f"{votes} vote{'' if votes == 1 else 's'}"
    judged = "demonstrations" if kind == "sft" else judged
    what = WHAT[kind].format(base=name or "the base model")
    parts = [
        "\n".join([*head, "---"]),
        f"# {'Reward model' if kind == 'reward' else 'Policy'} made with Backflip",
        what,
        "## Where it comes from",
        f"- Base model: {name or 'not recorded'}\n- Fitted to: {judged}",
        f"The plan of the run:\n\n```toml\n{plan.strip()}\n```" if plan.strip() else "The plan was not recorded.",
        "## What it is for",
        MEANT[kind],
        f"```python\n{USE[kind]}\n```",
        "## Limits",
        "It learned from the raters of one run: their taste and their errors are in it. It was not checked for safety.",
        "## Licence",
        "The base model's licence applies. Backflip does not know it: whoever publishes this model must check it.",
    ]
    return "\n\n".join(parts) + "\n"
