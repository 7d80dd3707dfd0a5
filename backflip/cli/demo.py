"""`backflip demo`: the whole loop, with nothing to set."""

from pathlib import Path
from typing import Any

from backflip.cli.progress import watching
from backflip.cli.report import print_report, write_run_report
from backflip.cli.run import Folder, Rounds, Seed, carry_on, make_run
from backflip.cli.terminal import AsJson


def demo(dir: Folder = None, seed: Seed = None, rounds: Rounds = None, as_json: AsJson = False) -> None:
    """Run the whole loop on a small chat model and write the report; a run in --dir is carried on."""
    with watching() as watcher:
        root = _start(dir, {key: value for key, value in (("seed", seed), ("rounds", rounds)) if value is not None})
        carry_on(root, watcher, again=f"backflip demo --dir {root}")
    print_report(root, write_run_report(root), as_json=as_json)


def _start(folder: Path | None, changes: dict[str, Any]) -> Path:
    """The folder of a new demo, or of the one to carry on."""
    from backflip.cycle.plan import Plan
    from backflip.cycle.run import PLAN, new_folder

    root = folder or new_folder("demo")
    if changes or not (root / PLAN).is_file():
        make_run(root, Plan(**changes))
    return root
