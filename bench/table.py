"""What every benchmark writes: `bench/results/NAME.json`, and the same as a table on the screen.

Run by itself, it prints every committed result.
"""

import hashlib
import json
import operator
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

_TESTS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_BAR = re.compile(r"(?:(value|low|high) )?(>=|<=|>|<|==) (-?[0-9.]+(?:e-?[0-9]+)?)")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One claim and whether it holds.

    `bar` is "", or a comparison such as ">= 0.65", "low > 0.5" or "high <= 10": without a name it is about
    `value`. `holds` is computed from it and cannot be given; None without a bar. A figure that is missing or
    not a number meets no bar. For "n of m", `value` is n.
    """

    claim: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    bar: str = ""
    met_by: str = ""
    """The claim of a row that meets its own bar and thereby this row's too, where either bar is enough."""
    holds: bool | None = field(init=False)
    command: str = ""
    raw: str = ""
    """File with the figures behind it, relative to the repository."""

    def __post_init__(self) -> None:
        """Compute `holds`. Raises: ValueError for a bar that cannot be read."""
        object.__setattr__(self, "holds", self._holds())

    def _holds(self) -> bool | None:
        if not self.bar:
            return None
        found = _BAR.fullmatch(self.bar)
        if found is None:
            raise ValueError(f'{self.claim}: bar "{self.bar}" is not like ">= 0.65" or "low > 0.5"')
        name, test, bound = found.groups()
        figure = getattr(self, name or "value")
        met = figure is not None and bool(_TESTS[test](float(figure), float(bound)))
        return met or bool(self.met_by)


def ratio_row(claim: str, above: Sequence[float], below: Sequence[float], **more: Any) -> Row:
    """The ratio of two medians; its interval from 10,000 resamples of the repeats."""
    draw = np.random.default_rng(0)
    a, b = np.array(above), np.array(below)
    resampled = [
        np.median(a[draw.integers(len(a), size=len(a))]) / np.median(b[draw.integers(len(b), size=len(b))])
        for _ in range(10_000)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Row(claim=claim, value=float(np.median(a) / np.median(b)), low=float(low), high=float(high), **more)


class Missing(Exception):
    """A part is not on the disk, and was not to be made."""


def part(
    name: str, key: str, quick: bool, settings: Mapping[str, Any], make: Callable[[], Any], *, own: bool = True
) -> Any:
    """What `make` returned (as JSON) for part `key` of a benchmark; taken from the disk when it is there.

    It is made again when `settings` or, where it is the package's `own` work, the package's code differ from those
    it was made with.
    """
    file = raw_file(name, key, quick)
    made_with = {"code": code() if own else "", "settings": json.loads(json.dumps(settings))}
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if all(kept[k] == v for k, v in made_with.items()):
            return kept["result"]
    result = json.loads(json.dumps(make()))
    _write(file, {**made_with, "commit": commit(), "machine": machine(), "result": result}, indent=None)
    return result


def raw_file(name: str, key: str, quick: bool) -> Path:
    """Where part `key` of a benchmark is kept."""
    return RESULTS / "raw" / f"{_stem(name, quick)}.{key}.json"


def relative(path: Path) -> str:
    """`path` relative to the repository, as it stands in a row."""
    return str(path.relative_to(ROOT))


def write_results(
    name: str, rows: Sequence[Row], quick: bool, seeds: Sequence[int], raw: Mapping[str, Any] | None = None
) -> Path:
    """Write `bench/results/NAME.json` (NAME.quick.json when `quick`) and print it; returns its path.

    `raw` is whatever else a reader needs to check the rows.
    """
    results = {
        "name": name,
        "quick": quick,
        "commit": commit(),
        "machine": machine(),
        "seeds": list(seeds),
        "rows": [asdict(row) for row in rows],
        "raw": dict(raw or {}),
    }
    file = RESULTS / f"{_stem(name, quick)}.json"
    _write(file, results)
    print_table(results)
    return file


def print_table(results: Mapping[str, Any]) -> None:
    """Print one result file as a table."""
    kind = " (quick)" if results["quick"] else ""
    seeds = ", ".join(map(str, results["seeds"]))
    print(f"\n{results['name']}{kind}  commit {results['commit']}  seeds {seeds}  {results['machine']['cpu']}")
    lines = [("claim", "value", "interval", "unit", "bar", "holds")]
    for row in results["rows"]:
        interval = "" if row["low"] is None else f"[{row['low']:.4g}, {row['high']:.4g}]"
        holds = "by the other" if row.get("met_by") else {None: "", True: "yes", False: "NO"}[row["holds"]]
        lines.append((row["claim"], f"{row['value']:.4g}", interval, row["unit"], row["bar"], holds))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def commit() -> str:
    """The commit that is checked out, with "+changes" when tracked files (results aside) differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    return head + ("+changes" if _git("status", "--porcelain", "-uno", "--", ".", ":!bench/results") else "")


def code() -> str:
    """Hash of the package's Python files as they stand, committed or not."""
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted((ROOT / "backflip").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    packages = ("torch", "transformers", "numpy")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {p: version(p) for p in packages},
    }


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else []
    return str(names[0]) if names else platform.processor() or platform.machine()


def _memory_gib() -> float:
    """Memory in GiB; the container's limit where it is lower than the machine's."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        sizes.append(int(limit.read_text()))
    return round(min(sizes) / 2**30, 1)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _stem(name: str, quick: bool) -> str:
    return f"{name}.quick" if quick else name


def _write(file: Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
    partial.replace(file)


if __name__ == "__main__":
    for path in sorted(RESULTS.glob("*.json")):
        print_table(json.loads(path.read_text(encoding="utf-8")))
    sys.exit(0)
