"""How fast does Backflip sample and train, beside Hugging Face's own code and beside the machine's limit?

    python bench/engine.py [--quick] [--threads N] [--repeats N] [--alone] [--kept] [--quality] [--learning]

SmolLM2-135M, prompts of 40 tokens, 48 new tokens each, none ending early: both sides make the same number of tokens,
which is checked. The two sides take turns, within one process beside Hugging Face's `generate` and in one each beside
TRL; a row is the ratio of their medians, its interval that of the ratio resampled over repeats. The matmul peak is
measured in the same run. Beside TRL (see `peers`) a side's first turn is its warm-up, which has rows of its own.
--quick takes smaller sizes; --alone leaves TRL out; --kept leaves out what is not on the disk yet.
The race to a share of wins (see `quality`) takes hours: --quality
runs what is missing of it; without, its rows stand here once all of its runs are on the disk. So do those of the
demo's own runs (see `unharmed`), which --learning makes.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers
import quality
import unharmed
from table import Missing, Row, part, ratio_row, raw_file, relative, write_results

from backflip.core.records import Prompt
from backflip.models.adapters import new_adapter, upper_layers
from backflip.models.chat import Chat, open_chat
from backflip.models.load import DEMO_MODEL, Loaded, load_model, locate
from backflip.models.packed import pack
from backflip.policies.plan import PPO
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader

PROMPT, NEW, BATCH = 40, 48, 64
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def prompts_of(count: int, length: int = PROMPT) -> list[list[int]]:
    """`count` different prompts of `length` tokens each, of ordinary words."""
    draw = np.random.default_rng(0)
    return [draw.integers(1000, 20000, length).tolist() for _ in range(count)]


def endless_chat(loaded: Loaded, by_id: dict[str, list[int]]) -> Chat:
    """A chat side whose prompts' tokens are given, by the prompt's id, and whose answers never end."""
    chat = open_chat(loaded)
    endless = Chat(chat.tokenizer, (), chat.context, chat.templated)
    object.__setattr__(endless, "encode", lambda prompt, max_tokens=0: by_id[prompt.id])
    return endless


def own_sampler(loaded: Loaded, ids: list[list[int]], new: int, batch: int = BATCH) -> Callable[[], int]:
    """Draws one answer to each prompt with Backflip's engine; returns the tokens made."""
    by_id = {str(i): tokens for i, tokens in enumerate(ids)}
    engine = Engine(lambda _: loaded.trunk, endless_chat(loaded, by_id), batch=min(batch, len(ids)))
    engine.load("reference")
    prompts = [Prompt(id=i, split="train", text="") for i in by_id]

    def run() -> int:
        drawn = engine.sample(prompts, 1, seed=0, max_tokens=new)
        return sum(len(a.tokens) for answers in drawn for a in answers)

    return run


def hf_sampler(name: str, dtype: torch.dtype, ids: list[list[int]], new: int) -> Callable[[], int]:
    """Draws one answer to each prompt with `generate`, as TRL's trainers call it; returns the tokens made."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(locate(name), dtype=dtype).eval()
    tokens = torch.tensor(ids)
    model.generation_config.eos_token_id = None
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": 2}

    @torch.no_grad()
    def run() -> int:
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, **settings)
        return int(out[:, tokens.shape[1] :].numel())

    return run


def take_turns(sides: dict[str, Callable[[], int]], repeats: int) -> dict[str, Any]:
    """Tokens per second of each side, one after the other, the first turn of each left out."""
    speed: dict[str, list[float]] = {name: [] for name in sides}
    made = set()
    for turn in range(repeats + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            tokens = run()
            made.add(tokens)
            if turn:
                speed[name].append(tokens / (time.perf_counter() - began))
    if len(made) != 1:
        raise SystemExit(f"the sides made different numbers of tokens: {made}")
    return {"speed": speed, "tokens": made.pop()}


def sampling(dtype: str, batch: int, repeats: int) -> dict[str, Any]:
    """Backflip's engine and `generate` on the same prompts."""
    loaded = load_model(DEMO_MODEL, dtype=DTYPES[dtype])
    ids = prompts_of(batch)
    return take_turns(
        {"own": own_sampler(loaded, ids, NEW), "hf": hf_sampler(DEMO_MODEL, DTYPES[dtype], ids, NEW)}, repeats
    )


def growth(repeats: int, answers: int, new: int) -> dict[str, Any]:
    """Sampling `answers` of `new` tokens, and 4 times as many of 2 times the length, with the FLOPs of both.

    The engine's batch is the same for both, so that the larger work is more of the same and not a better use of the
    machine.
    """
    loaded = load_model(DEMO_MODEL)
    width = int(loaded.trunk.hidden_size)
    out: dict[str, Any] = {}
    runs = {"small": (answers, new), "large": (4 * answers, 2 * new)}
    samplers = {name: own_sampler(loaded, prompts_of(n), t, min(BATCH, answers)) for name, (n, t) in runs.items()}
    for name, (n, t) in runs.items():
        tokens, seen = n * (PROMPT + t), n * (PROMPT + t) ** 2 / 2  # pairs of tokens that attend
        attention = 4.0 * width * loaded.trunk.layers * seen
        out[name] = {
            "seconds": [], "flops": tokens * trunk_flops(loaded) + n * t * head_flops(loaded) + attention,
        }  # fmt: skip
    samplers["small"]()
    for _ in range(repeats):
        for name, run in samplers.items():
            began = time.perf_counter()
            run()
            out[name]["seconds"].append(time.perf_counter() - began)
    return out


def trunk_flops(loaded: Loaded) -> float:
    """FLOPs of a token's forward through the blocks, attention left out."""
    return 2.0 * sum(a * b for a, b in loaded.trunk.linear_shapes().values())


def head_flops(loaded: Loaded) -> float:
    """FLOPs of a token's logits."""
    return 2.0 * loaded.trunk.vocabulary * loaded.trunk.hidden_size


def training(micro: int, repeats: int) -> dict[str, Any]:
    """Forward and backward of a packed micro-batch with the demo's adapter, in GFLOPS, beside the matmul peak."""
    loaded = load_model(DEMO_MODEL)
    trunk, config = loaded.trunk, PPO()
    adapter = new_adapter(
        upper_layers(trunk.linear_shapes(), config.adapted), rank=config.rank, alpha=config.alpha, seed=0
    )
    ids, draw = prompts_of(micro // config.answers), np.random.default_rng(1)
    answers = [draw.integers(1000, 20000, NEW).tolist() for _ in range(micro)]
    batch = pack(ids, answers, [i // config.answers for i in range(micro)])
    reader = Reader(trunk, open_chat(loaded))
    done, peak = [], []
    for turn in range(repeats + 1):
        began = time.perf_counter()
        hidden = trunk.hidden(batch, adapter)
        logp, _ = reader.of_rows(hidden.final[batch.predict_rows[batch.answer_mask]], batch)
        logp.sum().backward()
        seconds = time.perf_counter() - began
        if turn:
            done.append(training_flops(loaded, adapter.b, len(ids), micro) / seconds / 1e9)
            peak.append(matmul_peak())
    return {"gflops": done, "peak_gflops": peak, "micro": micro}


def training_flops(
    loaded: Loaded,
    adapted: Any,
    prompts: int,
    answers: int,
    prompt: int = PROMPT,
    new: int = NEW,
    *,
    known: bool = False,
) -> float:
    """What forward and backward must compute: the head's gradient is one more product, a block's one for its input.

    `prompts` of `prompt` tokens each, `answers` to them of `new`; `known` says that the states below the adapted layers
    need not be computed.
    """  # fmt: skip
    tokens = prompts * prompt + answers * new
    c = loaded.trunk.config
    layers, width = (
        int(c.num_hidden_layers),
        int(c.num_attention_heads) * int(loaded.trunk.hidden_size // c.num_attention_heads),
    )
    seen = prompts * prompt**2 / 2 + answers * new * (prompt + new / 2)  # pairs of tokens that attend
    attention = 4.0 * width * seen * layers
    upper = len({name.split(".")[2] for name in adapted}) / layers
    share = upper if known else 1.0
    forward = (tokens * trunk_flops(loaded) + attention) * share + answers * new * head_flops(loaded)
    backward = tokens * trunk_flops(loaded) * upper + answers * new * head_flops(loaded) + 2 * attention * upper
    return forward + backward


def matmul_peak() -> float:
    """GFLOPS of a large bfloat16 product, the best of five."""
    a, b = torch.randn(2048, 2048).bfloat16(), torch.randn(2048, 2048).bfloat16()
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best / 1e9


def main() -> None:
    """Run the parts that are missing, then print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=0)
    parser.add_argument("--kept", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--learning", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    threads, repeats = torch.get_num_threads(), args.repeats or (2 if args.quick else 5)
    command = "python bench/engine.py" + (" --quick" if args.quick else "")

    def made(key: str, make: Callable[[], Any]) -> Any:
        if args.kept and not raw_file("engine", key, args.quick).exists():
            raise Missing
        return part("engine", key, args.quick, {"threads": threads, "repeats": repeats}, make)

    def about(key: str, unit: str = "ratio", bar: str = "") -> dict[str, str]:
        return {"unit": unit, "bar": bar, "command": command, "raw": relative(raw_file("engine", key, args.quick))}

    rows: list[Row] = []
    for batch, bar, claim in (
        (64, ">= 1.5", "sampling batch 64 vs HF generate same precision"),
        (1, ">= 1", "sampling batch 1 vs HF generate"),
    ):
        ratios, speeds = [], []
        for dtype in DTYPES:
            key = f"sampling-{batch}-{dtype}"
            seen = made(key, partial(sampling, dtype, batch, repeats))["speed"]
            ratios.append(ratio_row(f"{claim}, {dtype}", seen["own"], seen["hf"], **about(key)))
            speed = float(np.median(seen["own"]))
            speeds.append(Row(claim=f"sampling batch {batch}, {dtype}", value=speed, **about(key, "tokens/s")))
        worst = min(ratios, key=lambda row: row.value)  # the claim is for both
        rows += [replace(worst, claim=claim, bar=bar), *ratios, *speeds]
    seen = made("training", partial(training, 48, repeats))
    share = about("training", "share", ">= 0.70")
    rows.append(ratio_row("training share of matmul peak bf16", seen["gflops"], seen["peak_gflops"], **share))
    base = (32, 24) if args.quick else (BATCH, NEW)
    seen = made("growth", partial(growth, min(repeats, 3), *base))
    small, large = (float(np.median(seen[s]["seconds"])) for s in ("small", "large"))
    foreseen = small * seen["large"]["flops"] / seen["small"]["flops"]
    rows.append(Row(claim="cost growth error", value=abs(large / foreseen - 1), **about("growth", "share", "<= 0.2")))
    if not args.alone:
        rows += peers.rows(made, about, peers.Work(threads, args.quick), repeats)
    if not args.quick:
        for what, option, make in (
            ("time to same quality", "--quality", partial(quality.rows, quality.Runs("engine", threads, args.quality))),
            ("demo minutes", "--learning", partial(unharmed.minutes, args.learning)),
            ("learning unharmed", "--learning", partial(unharmed.learning, args.threads, args.learning)),
        ):
            try:
                rows += make(f"{command} {option}")
            except Missing:
                print(f"{what}: left out, not all of its runs are on the disk; {option} runs them")
    write_results("engine", rows, args.quick, [0], {"threads": threads, "repeats": repeats})


if __name__ == "__main__":
    main()
