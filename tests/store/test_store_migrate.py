import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from filelock import FileLock

from backflip import store
from backflip.core.errors import BackflipError, BusyError, DataError
from backflip.core.records import ModelVersion
from backflip.store import open_store
from backflip.store.engine import connect
from backflip.store.migrate import VERSION_TABLE, revision
from backflip.store.tables import metadata

Spawn = Callable[..., subprocess.Popen[str]]

OPEN = """
import sys
from backflip.store import open_store
print("ready", flush=True)
sys.stdin.readline()
with open_store(sys.argv[1]) as store:
    with store.begin() as tx:
        tx.set_note(sys.argv[2], "here")
"""


def test_migrations_make_the_tables_the_code_expects(where: str):
    open_store(where).close()
    database = connect(where, busy_s=5.0)

    with database.write() as connection:
        dialect = connection.dialect

        def differ(*columns_and_types: Any) -> bool:  # spelt out, collation included
            *_, found, expected = columns_and_types
            return bool(found.compile(dialect) != expected.compile(dialect))

        options = {"version_table": VERSION_TABLE, "compare_type": differ}
        context = MigrationContext.configure(connection, opts=options)
        differences = compare_metadata(context, metadata)
    database.close()

    assert differences == []


def test_opening_again_changes_nothing(made: str):
    with open_store(made) as store, store.begin() as tx:
        tx.set_note("k", "v")

    with open_store(made) as store:
        assert store.note("k") == "v"


def test_two_processes_may_create_the_store_at_once(where: str, spawn: Spawn):
    children = [spawn(OPEN, where, name) for name in ("one", "two")]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=30)
    assert [child.returncode for child in children] == [0, 0]

    with open_store(where) as store:
        assert [store.note("one"), store.note("two")] == ["here", "here"]


def test_a_migration_waits_for_the_one_that_runs(tmp_path: Path):
    with FileLock(tmp_path / "run.db.migrating"), pytest.raises(BusyError, match="is locked"):
        open_store(tmp_path / "run.db", busy_s=0.1)

    open_store(tmp_path / "run.db", busy_s=0.1).close()


def test_a_postgresql_migration_waits_for_the_one_that_runs(postgresql_url: str):
    first = connect(postgresql_url, busy_s=5.0)
    with first.write() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({int.from_bytes(b'backflip')})")
        with pytest.raises(BusyError, match="is locked"):
            open_store(postgresql_url, busy_s=0.1)
    first.close()

    open_store(postgresql_url).close()


def test_a_migration_that_fails_leaves_no_tables(where: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.bulk_insert", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            open_store(where)

    database = connect(where, busy_s=5.0)
    with database.read() as connection:
        assert sa.inspect(connection).get_table_names() == []
    database.close()
    open_store(where).close()


def test_a_store_of_a_newer_backflip_is_refused(where: str):
    open_store(where).close()
    database = connect(where, busy_s=5.0)
    with database.write() as connection:
        assert revision(connection) == "0003"
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    database.close()

    with pytest.raises(BackflipError, match=r"newer Backflip \(schema 9999; this one knows up to 0003\)"):
        open_store(where)


def test_another_programs_database_is_left_alone(tmp_path: Path):
    other = sqlite3.connect(tmp_path / "photos.db")
    other.execute("CREATE TABLE albums (name)")
    other.commit()
    other.close()

    with pytest.raises(BackflipError, match="holds the table albums"):
        open_store(tmp_path / "photos.db")

    other = sqlite3.connect(tmp_path / "photos.db")
    assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("albums",)]
    other.close()


def test_a_store_of_the_first_schema_keeps_its_models_and_pairs(where: str):
    database = connect(where, busy_s=5.0)
    config = Config()
    config.set_main_option("script_location", str(Path(store.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for statement in (
            "INSERT INTO prompts (id, split, text, topic, form) VALUES ('p', 'train', 'say', '', '')",
            *(
                "INSERT INTO samples VALUES "
                f"('{s}', 1, 'rate', 'p', 'reference', {n}, 'text', {'true' if n else 'false'}, 1, 'file', {n})"
                for n, s in enumerate("ab")
            ),
            "INSERT INTO pairs VALUES ('q', 1, 'fit', 'p', 'a', 'b', 'reference', 0.5, 1)",
            "INSERT INTO models (id, kind, round, parent, path) VALUES ('reference', 'base', 0, NULL, 'somewhere')",
            "INSERT INTO models (id, kind, round, parent, path) VALUES ('policy-r1', 'policy', 1, 'reference', 'r1')",
        ):
            connection.exec_driver_sql(statement)
    database.close()

    sft = ModelVersion(id="tuned", kind="sft", round=0, parent="reference", path="models/sft")
    with open_store(where) as opened:
        [pair] = opened.pairs()
        with opened.begin() as tx:
            tx.add_model(sft)
        assert [p.history for p in opened.prompts()] == [()]
        assert (pair.id, pair.probability, pair.ranking) == ("q", 0.5, "")
        assert [m.id for m in opened.models()] == ["reference", "policy-r1", "tuned"]
        with pytest.raises(DataError, match="model_kind"), opened.begin() as tx:
            tx.add_model(replace(sft, id="odd", kind="odd"))  # type: ignore[arg-type]
