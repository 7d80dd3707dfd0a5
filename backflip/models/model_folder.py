"""Look into a model folder before anything is loaded from it: what is missing or broken is said plainly."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from backflip.core.disk import no_room
from backflip.core.errors import BackflipError, DataError
from backflip.core.memory import ran_out

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched."""


def check_folder(folder: Path) -> None:
    """Refuse a folder from which no model can be loaded.

    Raises: DataError when there is no config.json, no weights, only pickled ones, or a file of weights that is
    missing or cut short.
    """
    if not (folder / "config.json").exists():
        raise DataError(
            f"{folder} has no config.json, so it is no Hugging Face model folder.\n"
            "It may be the folder above or below the model's own, or a download that broke off.\n"
            "Give the folder that holds config.json and the weights."
        )
    if (folder / INDEX).exists():
        parts = sorted(set(_weight_map(folder / INDEX).values()))
        for part in parts:
            if not (folder / part).is_file():
                raise DataError(
                    f"{folder} lacks {part}, one of the {len(parts)} files of its weights.\n"
                    "The download or copy may have broken off.\n"
                    "Fetch the missing files."
                )
    elif (folder / WEIGHTS).exists():
        parts = [WEIGHTS]
    else:
        raise _no_weights(folder)
    for part in parts:
        check_safetensors(folder / part)


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if isinstance(found, dict) and found and all(isinstance(v, str) for v in found.values()):
            return found
        raise ValueError("its weight_map names no files")
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(
            f"{index} cannot be read: {e}.\nThe download or copy may have broken off.\nFetch it again."
        ) from e


def _no_weights(folder: Path) -> DataError:
    files = sorted(f.name for f in folder.iterdir() if f.is_file())
    pickles = [n for n in files if n.endswith(PICKLES) and not n.startswith(("training_args", "optimizer"))]
    if pickles:
        return pickled(folder, pickles[0])
    other = [n for n in files if n.endswith((".gguf", ".safetensors"))]
    return DataError(
        f"{folder} has a config.json but no weights: neither {WEIGHTS} nor {INDEX}.\n"
        + (f"It does hold {other[0]}.\n" if other else "The download or copy may have broken off.\n")
        + (
            "Give the path of that file."
            if other and other[0].endswith(".gguf")
            else f"Fetch the weights as {WEIGHTS}."
        )
    )


def pickled(folder: Path, name: str) -> DataError:
    """What is said of weights that are kept only as a pickle."""
    return DataError(
        f"{folder} keeps its weights only as a pickle, {name}.\n"
        "A pickle can run any code while it is read, so Backflip never opens one.\n"
        "Get the model in safetensors format, or convert it: load it where you trust it, "
        "then model.save_pretrained(folder)."
    )


def check_safetensors(file: Path) -> None:
    """Raises: DataError when the file is no whole safetensors file."""
    try:
        with safe_open(file, framework="pt"):
            return
    except (SafetensorError, OSError) as e:
        with file.open("rb") as f:
            pointer = f.read(len(POINTER)) == POINTER
        raise DataError(
            f"{file} cannot be read as safetensors: {e}.\n"
            + (
                "It is a pointer of Git LFS, which stands where the weights should be.\nFetch them with: git lfs pull"
                if pointer
                else f"It has {file.stat().st_size:,} bytes: the download or copy may have broken off.\nFetch it again."
            )
        ) from e


def check_kind(model: str, config: Any) -> None:
    """Raises: DataError when the configuration is of no causal language model, or of one stored quantised."""
    kind = str(getattr(config, "model_type", ""))
    name = next(iter(getattr(config, "architectures", None) or []), "")
    causal = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or name.endswith(("ForCausalLM", "LMHeadModel"))
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (name and not causal):
        raise DataError(
            f"The model {model!r} is a {name or kind}, which has no causal language model head.\n"
            "It may be an encoder, an encoder-decoder, a classifier or a model without its output layer: "
            "none of them continues a text.\n"
            "Give a causal language model, whose config.json names a class like LlamaForCausalLM."
        )
    if getattr(config, "quantization_config", None):
        method = dict(config.quantization_config).get("quant_method", "unknown")
        raise DataError(
            f"The model {model!r} is stored quantised (method {method}), which cannot be adapted here.\n"
            "Its weights are no plain numbers.\n"
            "Give the unquantised model it was made from, or a GGUF file."
        )


def check_info(model: str, info: Mapping[str, Any], *, strict: bool) -> None:
    """Refuse a model some of whose weights were not in its files, which transformers fills with random numbers.

    `info` is what `from_pretrained` says about the loading; with `strict` weights of the blocks that the model has
    no place for are refused too. Raises: DataError.
    """
    missing = sorted(info["missing_keys"], key=by_block)
    if missing:
        raise DataError(
            f"The model {model!r} lacks the weights of {missing[0]}"
            + (f" and {len(missing) - 1} more" if missing[1:] else "")
            + ".\nTheir places would be filled with random numbers. The files may be incomplete, or config.json may "
            "belong to another model.\nFetch the model again, or give the folder in which they belong together."
        )
    unlike = sorted(info["mismatched_keys"], key=lambda m: by_block(m[0]))
    if unlike:
        name, found, wanted = unlike[0]
        raise DataError(
            f"The model {model!r} holds {name} in shape {tuple(found)}; its config.json asks for {tuple(wanted)}.\n"
            "config.json may belong to another model or have been edited.\n"
            "Fetch the model again, or give the folder in which they belong together."
        )
    extra = [n for n in info["unexpected_keys"] if n.startswith("model.layers.") and not n.endswith("inv_freq")]
    if strict and extra:
        raise DataError(
            f"The model {model!r} holds {min(extra, key=by_block)}, for which its config.json has no place.\n"
            "config.json may belong to another model, with fewer layers or without biases.\n"
            "Fetch the model again, or give the folder in which they belong together."
        )


def by_block(name: str) -> tuple[Any, ...]:
    """Sorts names with numbers in them as people count: layer 2 before layer 10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in name.split("."))


def check_tokenizer(model: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Raises: DataError when the tokenizer knows no words, or tokens the embedding of `rows` rows does not have."""
    ids = tokenizer.get_vocab().values()
    if not ids or not tokenizer("Hello 1", add_special_tokens=False)["input_ids"]:
        raise no_tokenizer(model, "it knows no words")
    if max(ids) >= rows:
        raise DataError(
            f"The tokenizer of {model!r} has the token {max(ids)}, and the model's embedding ends at {rows - 1}.\n"
            "The tokenizer may be another model's, or tokens were added without enlarging the embedding.\n"
            "Give a model with its own tokenizer, or enlarge it: model.resize_token_embeddings(len(tokenizer))."
        )


def words_of(folder: Path) -> set[str]:
    """The tokens in a folder's tokenizer.json; none where there is no such file."""
    file = folder / "tokenizer.json"
    return set(Tokenizer.from_file(str(file)).get_vocab()) if file.is_file() else set()


def without_strangers(tokenizer: Any, words: Collection[str]) -> Any:
    """The tokenizer without added tokens other than `words`.

    transformers gives some families special tokens whether or not a model's own files have them, with ids beyond
    its embedding.
    """
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    known = [t for t in core["added_tokens"] if t["content"] in words]
    if len(known) == len(core["added_tokens"]):
        return tokenizer
    special = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str) and v in words}
    plain = Tokenizer.from_str(json.dumps(core | {"added_tokens": known}))
    out = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=plain, clean_up_tokenization_spaces=False, **special
    )
    out.chat_template = tokenizer.chat_template
    return out


def no_tokenizer(model: str, why: str) -> DataError:
    """What is said when there is no usable tokenizer."""
    return DataError(
        f"The model {model!r} has no tokenizer that can be used: {why}.\n"
        "tokenizer.json may be missing or damaged.\n"
        "Copy the tokenizer's files from the model it was trained from, or save them there: "
        "tokenizer.save_pretrained(folder)."
    )


def check_finite(model: str, state: Mapping[str, torch.Tensor]) -> None:
    """Raises: DataError when a weight is not a finite number."""
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(
                f"The model {model!r} holds {name} with numbers that are not finite.\n"
                "Its training may have gone wrong, or a 16-bit format was too narrow for it.\n"
                'Use an earlier checkpoint, or model.dtype = "float32".'
            )


@contextmanager
def reading(model: str, part: str) -> Iterator[None]:
    """Turn whatever transformers trips over in somebody's files into one clear message.

    Raises: DataError; a lack of memory stays what it is.
    """
    try:
        yield
    except BackflipError:
        raise
    except Exception as e:
        if ran_out(e):
            raise
        raise _explain(model, part, e) from e


def _explain(model: str, part: str, error: Exception) -> DataError:
    """What a failed load most likely means, by the errors behind it."""
    line = str(error).strip().partition("\n")[0].rstrip(" .:")
    if no_room(error) and not isinstance(error, PermissionError):
        return DataError(
            f"The {part} of the model {model!r} could not be fetched: {line}.\n"
            "The disk that keeps what comes from the Hub is full or not writable.\n"
            "Free some space, or name another folder for it in HF_HOME."
        )
    if Path(model).expanduser().exists():
        if part == "tokenizer":
            return no_tokenizer(model, line or type(error).__name__)
        return DataError(
            f"The {part} of the model {model!r} could not be loaded: {line or type(error).__name__}.\n"
            "The files may be damaged, or the model needs its own code or newer libraries.\n"
            "Fetch it again, or choose a model that transformers knows."
        )
    behind: list[BaseException] = [error]
    while (cause := behind[-1].__cause__ or behind[-1].__context__) is not None and cause not in behind:
        behind.append(cause)

    def met(*kinds: type[Exception]) -> bool:
        return any(isinstance(e, kinds) for e in behind)

    if met(GatedRepoError):
        return DataError(
            f"The model {model!r} is on the Hub, but its owner gives it only to those who agree to its terms.\n"
            "You may not have agreed yet, or are not logged in here.\n"
            "Agree on the model's page, then log in with: hf auth login"
        )
    if met(RepositoryNotFoundError):
        return DataError(
            f"The Hub has no model {model!r} that you can see, and there is no such folder here.\n"
            "The name may be misspelt, or the model is private and you are not logged in.\n"
            "Check the spelling, log in with `hf auth login`, or give a local folder or GGUF file."
        )
    if met(OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError) or "couldn't connect" in line.lower():
        return DataError(
            f"The model {model!r} is no folder here, and the Hub cannot be reached to fetch it.\n"
            "There may be no network, or HF_HUB_OFFLINE is set and the model was never fetched before.\n"
            "Connect and try again, or give a local folder or GGUF file."
        )
    return DataError(
        f"The {part} of the model {model!r} could not be loaded: {line or type(error).__name__}.\n"
        "What the Hub has under this name may be no model, a pickle, or need its own code or newer libraries.\n"
        "Choose a model that transformers knows, with weights in safetensors."
    )
