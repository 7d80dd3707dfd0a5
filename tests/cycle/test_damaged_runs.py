"""A run folder that lost something, was moved, is read-only or comes from a newer version: mended, or told plainly."""

import ctypes
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from kills import differences, fingerprint
from safetensors.torch import load_file, save_file
from test_refusals import Listening
from tiny_run import all_prompts, new_run, plan_of, save_prompts

from backflip.core.errors import BackflipError, ConfigError, DataError
from backflip.cycle.comparison import compare_runs
from backflip.cycle.doctor import examine
from backflip.cycle.export import export_data
from backflip.cycle.folder import run_store
from backflip.cycle.forget import forget
from backflip.cycle.overview import overview
from backflip.cycle.plan import plan_toml, read_plan
from backflip.cycle.publish import export_policy
from backflip.cycle.run import run_rounds
from backflip.cycle.talk import load_policy
from backflip.cycle.texts import load_reward
from backflip.store import open_store
from backflip.store.migrate import VERSION_TABLE

FIT = "rounds/r1/samples-fit-train-02.safetensors"
POLICY = "rounds/r1/policy"


def gone(file: Path) -> None:
    shutil.rmtree(file) if file.is_dir() else file.unlink()


def cut(file: Path) -> None:
    for part in file.iterdir() if file.is_dir() else [file]:
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])


def overwritten(file: Path) -> None:
    for part in file.iterdir() if file.is_dir() else [file]:
        part.write_bytes(b"\xff\xfe not what was here")


def three_lines(error: BaseException) -> list[str]:
    lines = str(error).splitlines()
    assert len(lines) == 3, lines
    return lines


@pytest.fixture(scope="session")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one round."""
    root = new_run(tmp_path_factory.mktemp("whole") / "run", tiny_model, rounds=1)
    run_rounds(root)
    return root


@pytest.fixture(scope="session")
def longer(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, carried on for a second round."""
    root = copied(whole, tmp_path_factory.mktemp("longer"))
    more_rounds(root)
    run_rounds(root)
    return root


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def more_rounds(root: Path) -> None:
    file = root / "plan.toml"
    file.write_text(file.read_text().replace("rounds = 1", "rounds = 2"))


COMPUTED = ("features-rate.safetensors", "samples-monitor-reference.readings.npz")
MENDED = [(f"rounds/r1/{name}", damage) for name in COMPUTED for damage in (gone, cut, overwritten)]


@pytest.mark.parametrize(("lost", "damage"), [*MENDED, *((name, gone) for name in ("plans/from-r1.toml", "models"))])
def test_what_can_be_computed_again_is_and_the_run_ends_as_if_nothing_had_happened(
    whole: Path, longer: Path, tmp_path: Path, lost: str, damage: Callable[[Path], None]
) -> None:
    root = copied(whole, tmp_path)
    damage(root / lost)
    more_rounds(root)
    run_rounds(root)

    assert differences(fingerprint(root), fingerprint(longer)) == []


@pytest.mark.parametrize("damage", [gone, cut, overwritten])
def test_a_lost_reward_is_fitted_anew_and_that_is_said(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    root, watcher = copied(whole, tmp_path), Listening()
    damage(root / "rounds/r1/reward")
    shutil.rmtree(root / "models")  # which is what needs the reward
    run_rounds(root, watcher)

    anew = "round 1: its reward is missing or damaged, and is fitted anew on the same votes"
    assert [line for line in watcher.said if line == anew]
    assert differences(fingerprint(root), fingerprint(whole)) == []


def test_a_reward_fitted_anew_after_a_rater_was_forgotten_is_said_to_be_on_the_votes_left(
    whole: Path, tmp_path: Path
) -> None:
    root, watcher = copied(whole, tmp_path), Listening()
    with open_store(root / "run.db") as store:
        rater = store.votes(stream="fit")[0].rater_id
    forget(root, rater)
    gone(root / "rounds/r1/reward")
    shutil.rmtree(root / "models")
    run_rounds(root, watcher)

    assert [line for line in watcher.said if line.endswith("fitted anew on the votes that are left")]


@pytest.mark.parametrize("damage", [gone, cut, overwritten])
def test_a_damaged_checkpoint_is_dropped_for_the_one_before(
    tiny_model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    from backflip.cycle import optimise

    root = new_run(tmp_path / "run", tiny_model, rounds=1, prompts=whole / "prompts.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(optimise, "write_whole", stop)
        with pytest.raises(KeyboardInterrupt):
            run_rounds(root)
    steps = sorted((root / "rounds/r1/checkpoints").iterdir())
    damage(steps[-1])
    run_rounds(root)

    assert [s.name for s in steps] == ["step-00001", "step-00002"]
    assert differences(fingerprint(root), fingerprint(whole)) == []


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", [gone, cut, overwritten])
@pytest.mark.parametrize(
    ("lost", "use"),
    [
        (POLICY, lambda root: load_policy(root)),
        (POLICY, lambda root: export_policy(root, None, "adapter")),
        (POLICY, lambda root: (more_rounds(root), run_rounds(root))),
        (FIT, lambda root: (gone(root / "rounds/r1/features-rate.safetensors"), more_rounds(root), run_rounds(root))),
    ],
    ids=["chat", "export policy", "run", "run"],
)
def test_what_cannot_be_computed_again_is_named_with_the_cure(
    whole: Path, tmp_path: Path, lost: str, use: Callable[[Path], object], damage: Callable[[Path], None]
) -> None:
    root = copied(whole, tmp_path)
    damage(root / lost)
    with pytest.raises(DataError) as told:
        use(root)

    fact, cause, cure = three_lines(told.value)
    assert fact.startswith(f"{root / lost} {'is missing' if damage is gone else 'cannot be read: '}")
    assert "deleted or damaged" in cause
    assert cure.startswith("Put it back from another copy of the run.")


EVERY: dict[str, Callable[[Path], object]] = {
    "run": run_rounds,
    "status": overview,
    "export data": lambda root: export_data(root, root / "data"),
    "export policy": lambda root: export_policy(root, None, "adapter"),
    "chat": load_policy,
    "compare": lambda root: compare_runs(root, root),
}


@pytest.mark.parametrize("command", EVERY)
def test_a_run_without_its_database_is_refused_and_not_begun_again(whole: Path, tmp_path: Path, command: str) -> None:
    root = copied(whole, tmp_path)
    gone(root / "run.db")
    with pytest.raises(DataError) as told:
        EVERY[command](root)

    assert three_lines(told.value)[0] == f"{root / 'run.db'} is missing, and the run in {root} has begun."
    assert not (root / "run.db").exists()


@pytest.mark.parametrize("command", EVERY)
@pytest.mark.parametrize(("damage", "fact"), [(cut, "is damaged."), (overwritten, "is not a Backflip store.")])
def test_a_damaged_database_is_named(
    whole: Path, tmp_path: Path, command: str, damage: Callable[[Path], None], fact: str
) -> None:
    root = copied(whole, tmp_path)
    damage(root / "run.db")
    with pytest.raises(BackflipError) as told:
        EVERY[command](root)

    assert three_lines(told.value)[0] == f"{root / 'run.db'} {fact}"


@pytest.mark.parametrize("command", EVERY)
def test_a_database_of_a_newer_version_is_left_alone(whole: Path, tmp_path: Path, command: str) -> None:
    root = copied(whole, tmp_path)
    with open_store(root / "run.db") as store, store._database.write() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = 'v9999'"))
    with pytest.raises(BackflipError) as told:
        EVERY[command](root)

    fact, _, cure = three_lines(told.value)
    assert "was written by a newer Backflip (schema v9999" in fact
    assert cure == "Upgrade with: pip install -U backflip"


@pytest.mark.parametrize("file", ["plan.toml", "plans/from-r1.toml"])
def test_a_plan_of_a_newer_version_is_told_as_such_in_a_run_folder(whole: Path, tmp_path: Path, file: str) -> None:
    root = copied(whole, tmp_path)
    (root / file).write_text((root / file).read_text().replace("[ppo]", "[ppo]\nmomentum = 0.9"))
    for command in ("run", "status"):
        with pytest.raises(ConfigError) as told:
            EVERY[command](root)
        fact, cause, cure = three_lines(told.value)
        assert fact == f"{root / file}: unknown key ppo.momentum."
        assert cause.startswith("It was written by a newer Backflip, or edited.")
        assert "pip install -U backflip" in cure


def test_outside_a_run_folder_a_misspelt_key_is_only_misspelt(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("[ppo]\nstep = 3\n")
    with pytest.raises(ConfigError) as told:
        read_plan(tmp_path / "plan.toml")
    assert str(told.value).endswith("unknown key ppo.step.\nDid you mean ppo.steps?")


def test_a_kept_plan_that_is_gone_does_not_hide_where_the_run_is(whole: Path, tmp_path: Path) -> None:
    root = copied(whole, tmp_path)
    gone(root / "plans/from-r1.toml")

    assert overview(root).finished


def test_a_run_that_was_moved_carries_on_to_the_same_end(
    tiny_model: Path, longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    root = new_run(tmp_path / "old" / "run", tiny_model, rounds=1)
    run_rounds(root)
    moved = root.rename(tmp_path / "new")
    (tmp_path / "old").rmdir()
    monkeypatch.chdir(tmp_path)
    more_rounds(moved)
    for path in (Path("new"), moved):  # by a relative and by an absolute path, and twice
        run_rounds(path)
    export_data(Path("new"), Path("data"))
    export_policy(Path("new"), Path("policy"), "adapter")

    assert overview(moved).finished
    assert differences(fingerprint(moved), fingerprint(longer)) == []


@pytest.fixture(scope="module")
def packed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was moved with its model and its prompts in it."""
    base = tmp_path_factory.mktemp("packed")
    shutil.copytree(tiny_model, base / "old" / "model")
    run_rounds(new_run(base / "old", base / "old" / "model", rounds=1))
    return (base / "old").rename(base / "new")


USES: dict[str, Callable[[Path, Path], object]] = {
    "chat": lambda root, _: load_policy(root).answer("we love tea"),
    "reward": lambda root, _: load_reward(root).score([("we love tea", "tea is good")]),
    "export": lambda root, out: export_policy(root, out / "policy", "hf"),
    "doctor": lambda root, _: examine(read_plan(root / "plan.toml"), root=root),
    "run": lambda root, _: run_rounds(root),
}


@pytest.mark.parametrize("use", USES)
def test_whatever_uses_a_moved_run_finds_what_moved_with_it(packed: Path, tmp_path: Path, use: str) -> None:
    USES[use](packed, tmp_path)


@pytest.mark.parametrize("use", USES)
def test_a_run_begun_with_relative_paths_is_used_from_anywhere(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    shutil.copytree(tiny_model, "model")
    run_rounds(
        new_run(Path("run"), Path("model"), prompts=save_prompts(Path("prompts.jsonl"), all_prompts()), rounds=1)
    )
    monkeypatch.chdir(tmp_path / "away")
    USES[use](tmp_path / "home" / "run", tmp_path)


@pytest.mark.parametrize("use", USES)
def test_a_model_that_was_overwritten_is_refused_by_whatever_uses_it(
    tiny_model: Path, tmp_path: Path, use: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    root = new_run(tmp_path / "run", tmp_path / "model", rounds=1)
    run_rounds(root)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="its weights have changed"):
        USES[use](root, tmp_path)


def test_prompts_named_relative_to_the_runs_folder_are_found(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    shutil.copy(whole / "prompts.jsonl", root / "prompts.jsonl")
    (root / "plan.toml").write_text(plan_toml(plan_of(tiny_model, Path("prompts.jsonl"), rounds=1)))
    run_rounds(root)

    assert differences(fingerprint(root), fingerprint(whole)) == []


def test_prompts_that_went_away_are_named(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model, prompts=tmp_path / "elsewhere" / "prompts.jsonl")
    with pytest.raises(DataError) as told:
        run_rounds(root)

    fact, cause, _ = three_lines(told.value)
    assert fact == f"{tmp_path / 'elsewhere' / 'prompts.jsonl'} does not exist."
    assert cause.startswith("It may have been moved or deleted")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def like_anybody() -> Iterator[None]:
    """Whoever runs this, root too, may only do what a file's rights allow (Linux: capabilities, version 3)."""
    libc, header, data = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Data * 2)()
    assert libc.capget(ctypes.byref(header), data) == 0
    before = data[0].effective
    data[0].effective = before & ~0b1111  # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER
    assert libc.capset(ctypes.byref(header), data) == 0
    try:
        yield
    finally:
        data[0].effective = before
        assert libc.capset(ctypes.byref(header), data) == 0


@pytest.fixture(params=["folders", "files too"])
def read_only(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A finished run in folders that nobody may write to."""
    root = copied(whole, tmp_path)
    parts = [p for p in root.rglob("*") if p.is_dir() or request.param == "files too"]
    modes = {p: p.stat().st_mode for p in [root, *parts]}
    for p, mode in modes.items():
        p.chmod(mode & ~0o222)
    with like_anybody():
        yield root
    for p, mode in modes.items():
        p.chmod(mode)


@pytest.mark.parametrize("command", EVERY)
def test_a_read_only_run_folder_is_told(read_only: Path, command: str) -> None:
    with pytest.raises(BackflipError) as told:
        EVERY[command](read_only)

    fact, _, cure = three_lines(told.value)
    assert fact.startswith(str(read_only / "run."))
    assert "cannot be written" in fact or "Permission denied" in fact
    assert "copy the run" in cure


def test_a_store_is_not_made_for_a_run_that_lost_its_own(whole: Path, tmp_path: Path) -> None:
    root = copied(whole, tmp_path)
    gone(root / "run.db")
    with pytest.raises(DataError, match="has begun"):
        run_store(root, read_plan(root / "plan.toml"))
