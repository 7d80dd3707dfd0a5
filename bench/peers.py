"""Backflip beside TRL on identical work: two processes that take turns, each measured by itself.

TRL lives in virtual environments of its own below bench/out, made here when they are missing: nothing is installed
anywhere else. Two releases, since 1.12 is the newest one with PPO. They hold the torch that this program runs on, by
its exact version, and the packages that constraints.txt pins, so that both sides compute with the same libraries.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from table import ROOT, Missing, Row, ratio_row

from backflip.models.load import locate

OUT = ROOT / "bench" / "out"
SIDES = Path(__file__).resolve().parent / "sides"
WITH_PPO, NEWEST = "1.12.0", "1.16.0"
WORDS = 1000, 20_000
"""Between these token ids prompts and answers take their words."""


def environment(version: str) -> Path:
    """The Python of the virtual environment with this TRL, made when it is missing.

    Raises: SystemExit when it cannot be installed or holds another build of torch.
    """
    folder = OUT / f"venv-trl-{version}"
    python, whole = folder / "bin" / "python", folder / "whole"
    if whole.exists():
        return python
    print(f"making {folder.relative_to(ROOT)}, once: a minute or two, 1.5 GB", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    pins = folder / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins.write_text("\n".join(line for line in lines if not line.startswith("trl==")), encoding="utf-8")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", pins]
    exact = f"torch=={torch.__version__.partition('+')[0]}"
    for command in (
        [sys.executable, "-m", "venv", folder],
        [*install, exact],  # first, so that a CPU build that pip is pointed at is taken
        [*install, exact, f"trl=={version}", "peft", "vaderSentiment"],
    ):
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(
                f"TRL {version} could not be installed into {folder.relative_to(ROOT)}.\n"
                "pip says why above; it may have no network.\n"
                "Start again with the network, or with --alone to leave TRL out."
            )
    ask = [python, "-c", "import torch; print(torch.__version__)"]
    build = subprocess.run(ask, check=False, capture_output=True, text=True)
    if build.stdout.strip() != torch.__version__:
        raise SystemExit(
            f"{folder.relative_to(ROOT)} holds torch {build.stdout.strip()}, Backflip runs on {torch.__version__}.\n"
            "pip took another build of it, so that the two sides could not be compared.\n"
            "Point pip at the index that this torch came from, delete that folder, and start again."
        )
    whole.touch()
    return python


class Side:
    """A process that takes one turn at a time; see `sides/serve.py`."""

    def __init__(self, name: str, python: Path, settings: Mapping[str, Any]) -> None:
        folder = OUT / "sides" / name
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, folder / "log.txt"
        whose = "own" if name.startswith("own") else "trl"
        script = SIDES / f"{whose}_{'quality' if name.endswith('quality') else 'side'}.py"
        threads = {"OMP_NUM_THREADS": str(settings["threads"])}
        paths = {"PYTHONPATH": str(ROOT)} if whose == "own" else {}
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=os.environ | threads | paths,
            )  # fmt: skip
        self.start = self._ask({**settings, "folder": str(folder)})["seconds"]

    def turn(self) -> dict[str, Any]:
        """One turn's figures: seconds, split, tokens, peak_gb."""
        return self._ask({})

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        inwards, outwards = self.process.stdin, self.process.stdout
        assert inwards is not None
        assert outwards is not None
        try:
            inwards.write(json.dumps(message) + "\n")
            inwards.flush()
        except BrokenPipeError:
            pass  # it ended, which the empty answer below says
        line = outwards.readline()
        if not line:
            last = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
            raise SystemExit(f"{self.name} ended early; the end of {self.log.relative_to(ROOT)}:\n{last}")
        return dict(json.loads(line))

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def take_turns(
    sides: Mapping[str, tuple[Path, Mapping[str, Any]]], repeats: int, *, same: bool = True
) -> dict[str, dict[str, Any]]:
    """Each side's start, first turn (the warm-up) and `repeats` turns after it, one side after the other.

    `sides` are (python, settings) by name. Raises: SystemExit when the tokens differ and they should be the `same`.
    """
    opened: list[Side] = []
    try:
        for name, (python, settings) in sides.items():
            opened.append(Side(name, python, settings))
        taken: dict[str, list[dict[str, Any]]] = {s.name: [] for s in opened}
        for turn in range(repeats + 1):
            for side in opened:
                taken[side.name].append(side.turn())
                last = taken[side.name][-1]
                print(
                    f"  {time.strftime('%H:%M:%S')} turn {turn} {side.name}: {last['seconds']:.1f} s, "
                    f"{last['peak_gb']:.2f} GB",
                    flush=True,
                )
    finally:
        for side in opened:
            side.close()
    made = {t["tokens"] for turns in taken.values() for t in turns}
    if same and len(made) != 1:
        raise SystemExit(f"the sides worked on different numbers of tokens: {sorted(made)}")
    return {
        s.name: {
            "start": s.start, "first": taken[s.name][0], "turns": taken[s.name][1:],
            "peak_gb": max(t["peak_gb"] for t in taken[s.name]),
        }
        for s in opened
    }  # fmt: skip


def one_turn(name: str, python: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a side makes of its one turn."""
    side = Side(name, python, settings)
    try:
        return side.turn()
    finally:
        side.close()


def word_ids(count: int, length: int, seed: int) -> list[list[int]]:
    """`count` lists of `length` tokens, all whole lower-case words, so that their text has the same tokens again."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(locate("smollm2-135m"))
    texts = tokenizer.batch_decode([[i] for i in range(*WORDS)])
    pool = [i for i, text in enumerate(texts, WORDS[0]) if re.fullmatch(" [a-z]+", text)]
    draw = np.random.default_rng(seed)
    found = [[pool[i] for i in draw.integers(len(pool), size=length)] for _ in range(count)]
    again = tokenizer(tokenizer.batch_decode(found), add_special_tokens=False)["input_ids"]
    if again != found:
        raise SystemExit("the words' text does not have the same tokens again")
    return found


def answer_ids(count: int, length: int, seed: int) -> list[list[int]]:
    """`count` answers of `length` tokens, words and the token that ends an answer."""
    return [[*words, END] for words in word_ids(count, length - 1, seed)]


END = 2
"""SmolLM2's <|im_end|>."""
PRECISIONS = ("fp32", "bf16")
"""Those of TRL that are tried; "autocast" is slower than both on CPUs."""
Maker = Callable[[str, Callable[[], Any]], Any]
"""(key of a part, how to make it) -> the part."""


class About(Protocol):
    """What a row says of itself beside claim and value."""

    def __call__(self, key: str, unit: str = "ratio", bar: str = "") -> dict[str, str]:
        """Fields of the row, by the part that its figures come from."""
        ...


class Work:
    """The comparisons' sizes and settings. One object for a run of the benchmark."""

    def __init__(self, threads: int, quick: bool) -> None:
        self.threads, self.quick = threads, quick
        self.prompt, self.new = 40, 8 if quick else 48
        self.episodes, self.epochs = (4, 2) if quick else (32, 4)
        self.group, self.pairs = (2, 4) if quick else (8, 32)
        self.micro = 2 if quick else 8

    def ppo(self, precision: str, *, lora: bool = False, checkpointing: bool = False) -> dict[str, Any]:
        """PPO: ours on one trunk, TRL's as it comes, or with an adapter; with this precision."""
        shared = self._shared(self.episodes) | {"episodes": self.episodes, "epochs": self.epochs, "new": self.new}
        trl = shared | {
            "work": "ppo", "precision": precision, "micro": self.micro, "learning_rate": 3e-6,
            "checkpointing": checkpointing,
        }  # fmt: skip
        if lora:
            trl["lora"] = upper_adapter()
        own = {"own": shared | {"work": "ppo"}}
        return self._sides(own, WITH_PPO, f"trl-ppo-{'lora-' if lora else ''}{precision}", trl)

    def same_ppo(self, precision: str) -> dict[str, Any]:
        """PPO with four whole models on either side, every weight of the layers trained, the embeddings kept."""
        sides = self.ppo(precision)
        (python, own), (name, (trl_python, trl)) = sides["own"], list(sides.items())[1]
        return {
            "own": (python, {**own, "work": "separate"}),
            f"{name}-layers": (trl_python, {**trl, "layers_only": True}),
        }

    def grpo(self) -> dict[str, Any]:
        """One update of GRPO."""
        shared = self._shared(self.episodes // self.group) | {
            "work": "grpo", "episodes": self.episodes, "group": self.group, "new": self.new, "beta": 0.05,
        }  # fmt: skip
        trl = shared | {"precision": "fp32", "micro": self.micro}
        return self._sides({"own": shared}, NEWEST, "trl-grpo", trl)

    def on_pairs(self, work: str) -> dict[str, Any]:
        """One pass over pairs: "reward" or "dpo"."""
        chosen, rejected = (answer_ids(self.pairs, self.new, seed) for seed in (1, 2))
        shared = self._shared(self.pairs) | {
            "work": work, "chosen": chosen, "rejected": rejected, "new": self.new, "micro": self.micro,
        }  # fmt: skip
        return self._sides({"own": shared}, NEWEST, f"trl-{work}", shared | {"precision": "fp32"})

    def _shared(self, prompts: int) -> dict[str, Any]:
        return {
            "threads": self.threads, "model": locate("smollm2-135m"), "prompts": word_ids(prompts, self.prompt, 0),
        }  # fmt: skip

    def _sides(
        self, own: Mapping[str, Mapping[str, Any]], version: str, name: str, trl: Mapping[str, Any]
    ) -> dict[str, tuple[Path, Mapping[str, Any]]]:
        ours = {side: (Path(sys.executable), settings) for side, settings in own.items()}
        return {**ours, name: (environment(version), trl)}


def upper_adapter() -> dict[str, Any]:
    """The demo's adapter, as peft names it."""
    from transformers import AutoConfig

    from backflip.models.adapters import upper_layers
    from backflip.policies.plan import PPO

    config, ours = AutoConfig.from_pretrained(locate("smollm2-135m")), PPO()
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    shapes = {f"model.layers.{i}.{kind}": (1, 1) for i in range(config.num_hidden_layers) for kind in kinds}
    return {"rank": ours.rank, "alpha": ours.alpha, "modules": sorted(upper_layers(shapes, ours.adapted))}


def rows(made: Maker, about: About, work: Work, repeats: int) -> list[Row]:
    """The rows of the comparisons with TRL, each from a part of its own; the quicker parts are made first.

    Where `made` says that a part is `Missing`, the rows that need it are left out.
    """

    def seen(key: str, sides: Callable[[], Any]) -> Any:
        return made(key, lambda: take_turns(sides(), repeats))

    def group_of_one() -> list[Row]:
        found = seen("trl-grpo", work.grpo)
        return [
            speed_row("grpo vs TRL 1.16 default", found, "own", about("trl-grpo", bar=">= 4")),
            *figures(found, "trl-grpo: ", work.episodes, "episodes/s", about("trl-grpo", "")),
        ]

    def on_pairs(which: str, claim: str) -> list[Row]:
        found = seen(f"trl-{which}", lambda: work.on_pairs(which))
        return [
            speed_row(claim, found, "own", about(f"trl-{which}", bar=">= 4")),
            *figures(found, f"trl-{which}: ", work.pairs, "pairs/s", about(f"trl-{which}", "")),
        ]

    def with_ppo(key: str, sides: Callable[[], Any]) -> tuple[Any, list[Row]]:
        found = seen(key, sides)
        return found, figures(found, f"{key}: ", work.episodes, "episodes/s", about(key, ""))

    def one_trunk() -> list[Row]:
        found, told = with_ppo("trl-ppo-fp32", lambda: work.ppo("fp32"))
        return [*shared_trunk(found, about), *told]

    def same() -> list[Row]:
        found, told = with_ppo("trl-same-fp32", lambda: work.same_ppo("fp32"))
        return [*same_work(found, about), *told]

    def beside_lora() -> list[Row]:
        parts = {f"trl-lora-{p}": with_ppo(f"trl-lora-{p}", lambda p=p: work.ppo(p, lora=True)) for p in PRECISIONS}
        plain = seen("trl-ppo-fp32", lambda: work.ppo("fp32"))
        best = fastest({k: found for k, (found, _) in parts.items()})
        return [*lora_or_roofline(plain, parts[best][0], best, about), *(r for _, told in parts.values() for r in told)]

    def fastest_setting() -> list[Row]:
        parts = {f"trl-same-{p}": with_ppo(f"trl-same-{p}", lambda p=p: work.same_ppo(p)) for p in PRECISIONS}
        best = fastest({k: found for k, (found, _) in parts.items()})
        claim = "same work ppo vs TRL fastest setting"
        return [speed_row(claim, parts[best][0], "own", about(best, bar="> 1")), *parts["trl-same-bf16"][1]]

    out: list[Row] = []
    for name, make in (
        ("grpo", group_of_one),
        ("reward fit", partial(on_pairs, "reward", "reward fit pairs/s vs TRL")),
        ("dpo", partial(on_pairs, "dpo", "dpo pairs/s vs TRL")),
        ("one trunk ppo", one_trunk),
        ("same work", same),
        ("ppo beside LoRA", beside_lora),
        ("same work, fastest setting", fastest_setting),
    ):
        try:
            out += make()
        except Missing:
            print(f"{name}: left out, not all of its parts are on the disk", flush=True)
    return out


def same_work(plain: Any, about: About) -> list[Row]:
    """Four whole models on either side."""
    memory = plain["own"]["peak_gb"] / plain[name_of_trl(plain)]["peak_gb"]
    return [
        speed_row("same work ppo 32x4 vs TRL 1.12 fp32", plain, "own", about("trl-same-fp32", bar=">= 3.5")),
        Row(claim="same work memory ratio", value=memory, **about("trl-same-fp32", bar="<= 0.5")),
    ]


def shared_trunk(plain: Any, about: About) -> list[Row]:
    """PPO as the demo does it."""
    return [
        speed_row("one trunk ppo vs TRL 1.12 default", plain, "own", about("trl-ppo-fp32", bar=">= 8")),
        Row(claim="one trunk ppo memory GB", value=plain["own"]["peak_gb"], **about("trl-ppo-fp32", "GB", "<= 3")),
    ]


def roofline(plain: Any, about: About) -> Row:
    """How much of a step's time its arithmetic would take at the machine's peaks."""
    least = [t["least_seconds"] for t in plain["own"]["turns"]]
    more = about("trl-ppo-fp32", "share", ">= 0.6")
    return ratio_row("one trunk ppo share of roofline", least, seconds(plain["own"]), **more)


def lora_or_roofline(plain: Any, lora: Any, best: str, about: About) -> list[Row]:
    """The rows beside TRL with an adapter and beside the roofline; where one holds, the other does."""
    row = speed_row("one trunk ppo vs TRL with LoRA, its best", lora, "own", about(best, bar=">= 3"))
    share = roofline(plain, about)
    return [
        replace(one, met_by=other.claim if other.holds and not one.holds else "")
        for one, other in ((row, share), (share, row))
    ]


def speed_row(claim: str, found: Mapping[str, Any], own: str, about: Mapping[str, str]) -> Row:
    """How many times faster Backflip's side `own` is than TRL's."""
    return ratio_row(claim, seconds(found[name_of_trl(found)]), seconds(found[own]), **about)


def figures(found: Mapping[str, Any], title: str, items: int, unit: str, about: Mapping[str, str]) -> list[Row]:
    """Speed, split by phase, warm-up and memory of every side of a part."""
    out: list[Row] = []
    for name, side in found.items():
        took, claim = float(np.median(seconds(side))), f"{title}{name}"
        values = {unit: items / took, "tokens/s": side["turns"][0]["tokens"] / took}
        values |= {"s warm-up": side["first"]["seconds"] - took, "s to start": side["start"], "GB": side["peak_gb"]}
        for phase in side["turns"][0]["split"]:
            values[f"s {phase}"] = float(np.median([t["split"][phase] for t in side["turns"]]))
        out += [Row(claim=f"{claim}, {u}", value=v, **{**about, "unit": u.split()[0]}) for u, v in values.items()]
    return out


def seconds(side: Mapping[str, Any]) -> list[float]:
    """Seconds of a side's turns."""
    return [t["seconds"] for t in side["turns"]]


def name_of_trl(found: Mapping[str, Any]) -> str:
    """Which of the sides is TRL's."""
    [name] = [n for n in found if n.startswith("trl")]
    return name


def fastest(parts: Mapping[str, Any]) -> str:
    """The part in which TRL took the least time."""
    return min(parts, key=lambda k: float(np.median(seconds(parts[k][name_of_trl(parts[k])]))))
