"""A disk that is full wherever Backflip writes: told plainly, nothing half-written stays, and the run carries on."""

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kills import differences, fingerprint
from test_refusals import Listening
from tiny import SPECIAL, TEMPLATE, hf_model, trained, trunk_of
from tiny_gguf import byte_tokenizer, write
from tiny_run import new_run, plan_of

from backflip.cli.init import init
from backflip.core.errors import BackflipError
from backflip.core.records import Metric, Prompt
from backflip.cycle import artefacts
from backflip.cycle.artefacts import write_whole
from backflip.cycle.export import export_data
from backflip.cycle.folder import only_process, start_run
from backflip.cycle.intake import import_preferences
from backflip.cycle.plan import read_plan
from backflip.cycle.publish import export_policy
from backflip.cycle.run import run_rounds
from backflip.cycle.trackers import open_tracker
from backflip.data.records import Preference
from backflip.data.table import read_table
from backflip.data.write import write_rows
from backflip.models.adapters import Adapter
from backflip.models.gguf_write import write_gguf
from backflip.models.load import load_model
from backflip.models.save import save_adapter
from backflip.policies.sft import SFT
from backflip.report import report_run
from backflip.store import open_store


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the system call itself fails, as on a full disk (EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything_in(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one round behind a stage 0."""
    folder = tmp_path_factory.mktemp("full")
    rows = "".join(f'{{"prompt": "the {w}", "completion": "{w} is good ."}}\n' for w in ("sun", "sea", "tea", "cat"))
    (folder / "shown.jsonl").write_text(rows)
    sft = SFT(demonstrations=str(folder / "shown.jsonl"), epochs=1, batch=2, rank=2)
    root = new_run(folder / "run", tiny_model, rounds=1, sft=sft)
    run_rounds(root)
    return root


PLACES = {
    "plan.toml", "from-r1.toml", "sft", "policy", "reward", "adapter", "step-00000", "step-00001", "step-00002",
    "features-rate.safetensors", "samples-fit", "samples-random", "samples-monitor", "samples-final",
}  # fmt: skip
"""What a run writes, with what tells one prompt or policy from another cut off."""


def test_a_run_that_meets_a_full_disk_at_each_of_its_files_carries_on_to_the_same_end(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    real, failed = artefacts.flush, set[str]()

    def full_once(file: Path) -> None:
        if file.name.endswith(f".{os.getpid()}.part"):
            whose = f"{file.parent.name}/{file.name}"
            if whose not in failed:
                failed.add(whose)
                if file.is_file():
                    file.write_bytes(file.read_bytes()[:7])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(artefacts, "flush", full_once)
    root.mkdir()
    shutil.copy(whole / "plan.toml", tmp_path / "plan.toml")

    def carry_on() -> BackflipError | None:
        try:
            start_run(root, read_plan(tmp_path / "plan.toml"))
            run_rounds(root)
        except BackflipError as e:
            return e
        return None

    times = 0
    while (told := carry_on()) is not None:
        times += 1
        assert "could not be saved: [Errno 28] No space left on device" in str(told)
        assert len(str(told).splitlines()) == 3
        assert list(root.rglob("*.part")) == []

    met = {f.rpartition("/")[2].split(f".{os.getpid()}")[0] for f in failed}
    assert times == len(failed) > 20
    assert not {p for p in PLACES if not any(m.startswith(p) for m in met)}
    monkeypatch.undo()
    assert differences(fingerprint(root), fingerprint(whole)) == []


def gguf_file(folder: Path) -> Path:
    words = [*SPECIAL, *"ab12cdefghijklmn", "ab", "12"]
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    return write(folder / "m.gguf", hf_model("llama", layers=1, vocabulary=24, **small), tokens=words)


def adapter_folder(folder: Path) -> Path:
    trunk, hf = trunk_of("llama")
    hf.save_pretrained(folder / "base")
    byte_tokenizer("smollm", template=TEMPLATE).save_pretrained(folder / "base")
    change: Adapter = trained(trunk)
    save_adapter(change, folder / "adapter", str(folder / "base"))
    return folder / "adapter"


def preferences() -> list[Preference]:
    return [
        Preference(
            where=f"row {n}", prompt=(("user", "the sun " * n),), chosen="good", rejected="bad dog", split="train"
        )
        for n in range(1, 9)
    ]


def table_to_file(run: Path, folder: Path) -> None:
    write_rows(read_table(str(run / "prompts.jsonl"), "prompts"), folder / "out.jsonl")


WRITERS: dict[str, tuple[int, Callable[[Path, Path], object]]] = {
    "a new run": (100, lambda run, out: start_run(out / "new", plan_of(run, run))),
    "init": (100, lambda run, out: init(out / "plan.toml")),
    "import to a file": (100, table_to_file),
    "the lock": (0, lambda run, out: only_process(run).__enter__()),
    "import into a run": (100, lambda run, out: import_preferences(run, preferences(), "rows")),
    "export data": (1000, lambda run, out: export_data(run, out / "data")),
    "export data as Parquet": (1000, lambda run, out: export_data(run, out / "data", "parquet")),
    "export the policy": (5000, lambda run, out: export_policy(run, out / "policy", "hf")),
    "export the policy, its tokenizer": (50_000, lambda run, out: export_policy(run, out / "policy", "hf")),
    "export the adapter": (1000, lambda run, out: export_policy(run, out / "policy", "adapter")),
    "report": (1000, lambda run, out: report_run(run)),
}


@pytest.mark.parametrize("place", WRITERS)
def test_a_disk_that_takes_no_more_is_told_and_nothing_half_written_stays(
    whole: Path, tmp_path: Path, place: str
) -> None:
    size, act = WRITERS[place]
    run, out = Path(shutil.copytree(whole, tmp_path / "run")), tmp_path / "out"
    out.mkdir()
    before = everything_in(tmp_path)
    with pytest.raises(BackflipError) as told, files_end_at(size):
        act(run, out)

    assert len(str(told.value).splitlines()) == 3
    left = everything_in(tmp_path)
    assert {f for f in left.keys() ^ before.keys() if not f.startswith("run/run.")} == set()
    act(run, out)  # and once there is room, it works


@pytest.mark.parametrize("make", [gguf_file, adapter_folder])
@pytest.mark.parametrize("size", [100, 1500, 8000])
def test_a_converted_model_that_finds_no_room_in_the_cache_leaves_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path], size: int
) -> None:
    model = make(tmp_path)
    monkeypatch.setenv("BACKFLIP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BackflipError) as told, files_end_at(size):
        load_model(str(model))

    fact, _, cure = str(told.value).splitlines()
    assert fact.startswith(f"{tmp_path / 'cache'}")
    assert "BACKFLIP_CACHE" in cure
    assert list((tmp_path / "cache").iterdir()) == []
    load_model(str(model))


@pytest.mark.parametrize("size", [10, 2000, 20_000])
def test_a_gguf_export_that_finds_no_room_leaves_nothing(tmp_path: Path, size: int) -> None:
    trunk, _ = trunk_of("llama")
    byte_tokenizer("smollm", template=TEMPLATE).save_pretrained(tmp_path / "words")
    out = tmp_path / "out" / "policy.gguf"

    def save() -> None:
        write_whole(out, lambda part: write_gguf(part, trunk, trained(trunk), tmp_path / "words"))

    with pytest.raises(BackflipError, match="could not be saved"), files_end_at(size):
        save()
    assert list(out.parent.iterdir()) == []
    save()


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = gguf_file(tmp_path)
    monkeypatch.setenv("BACKFLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(BackflipError, match="BACKFLIP_CACHE"):
        load_model(str(model))


def test_a_tracker_on_a_full_disk_is_left_out_and_the_run_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    plan, watcher = plan_of(tiny_model, tmp_path, trackers=("tensorboard",)), Listening()
    metric = Metric(round=1, step="optimise", tick=1, name="objective/kl", value=1.0)
    with open_store(tmp_path / "run.db") as store, files_end_at(10), open_tracker(tmp_path, plan, store, watcher) as t:
        for _ in range(50):
            t.log([metric])

    assert [line for line in watcher.said if line.startswith("tensorboard failed and is left out")]


@pytest.mark.parametrize("size", [0, 30_000])
def test_a_store_on_a_full_disk_is_told_and_keeps_what_it_had(tmp_path: Path, size: int) -> None:
    if size:
        open_store(tmp_path / "run.db").close()
    with (
        pytest.raises(BackflipError) as told,
        files_end_at(size),
        open_store(tmp_path / "run.db") as store,
        store.begin() as tx,
    ):
        tx.add_prompts([Prompt(id=f"q{i}", split="train", text="x" * 1000) for i in range(500)])

    assert len(str(told.value).splitlines()) == 3
    with open_store(tmp_path / "run.db") as store:
        assert store.prompts() == []
