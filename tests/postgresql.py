"""A real PostgreSQL server for tests, started once a session; import the fixtures where they are needed."""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

_names = itertools.count()


def _binaries() -> Path | None:
    """The newest folder that holds initdb and pg_ctl."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True)
    for folder in [*debian, *map(Path, os.environ.get("PATH", "").split(os.pathsep))]:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    return None


def _missing(what: str) -> None:
    """Skip by name; in CI, where the Makefile installs PostgreSQL, a skip is a failure."""
    reason = f"PostgreSQL tests: {what} (on Debian: apt-get install postgresql)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a database on a temporary server: a Unix socket in a private folder, so no port can clash.

    Its language sorts "q" before "Q", unlike code points.
    """
    folder = _binaries()
    if folder is None:
        _missing("no initdb and pg_ctl found")
    assert folder is not None
    owner = None
    if os.geteuid() == 0:  # initdb refuses to run as root
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            _missing("running as root, and there is no user postgres")
    home = Path(tempfile.mkdtemp(prefix="backflip-pg-"))
    if owner is not None:
        os.chown(home, owner.pw_uid, owner.pw_gid)

    def run(program: str, *args: str) -> None:
        as_owner = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        with (home / "output.log").open("a") as log:
            done = subprocess.run([folder / program, *args], stdout=log, stderr=log, cwd=home, check=False, **as_owner)
        assert done.returncode == 0, (home / "output.log").read_text()

    data = str(home / "data")
    settings = f"-c listen_addresses='' -c unix_socket_directories='{home}' -c fsync=off -c max_connections=60"
    try:
        run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        run("pg_ctl", "-D", data, "-w", "-t", "30", "-o", settings, "start")
        try:
            with psycopg.connect(f"postgresql:///postgres?host={home}&user=postgres", autocommit=True) as connection:
                english = "LOCALE_PROVIDER icu ICU_LOCALE 'en'" if connection.info.server_version >= 150_000 else ""
                connection.execute(f"CREATE DATABASE stores TEMPLATE template0 {english}")
            yield f"postgresql:///stores?host={home}&user=postgres"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)


@pytest.fixture
def postgresql_url(postgresql: str) -> str:
    """URL of a new, empty schema."""
    name = f"store_{next(_names)}"
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{postgresql}&options=-csearch_path%3D{name}"
