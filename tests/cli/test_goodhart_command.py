"""`backflip goodhart`: the table, the JSON, the page."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backflip.cli.main import app
from backflip.core.errors import ConfigError


def test_the_table_says_where_to_stop():
    done = CliRunner().invoke(app, ["goodhart"])

    assert done.exit_code == 0
    rows = {line.split("  ")[0]: re.split(r" {2,}", line) for line in done.output.splitlines() if "  " in line}
    assert rows["no cure"][1:] == ["1.33", "155", "234", "-36.68", "1.49"]
    assert rows["frozen rest"][3] == rows["chosen again"][3] == "never"
    assert "Stop at step 155" in done.output


def test_another_program_gets_every_step():
    done = CliRunner().invoke(app, ["goodhart", "--json", "--attributes", "8", "--budget", "1.5"])

    climb = json.loads(done.output)["climbs"]["none"]
    assert climb["end_utility"] == pytest.approx(-112.9, abs=0.05)
    assert len(climb["utility"]) == len(climb["proxy"]) == 1001


def test_the_page_stands_alone_and_says_where_to_stop(tmp_path: Path):
    file = tmp_path / "goodhart.html"

    assert CliRunner().invoke(app, ["goodhart", "--out", str(file)]).exit_code == 0
    page = file.read_text(encoding="utf-8")
    assert "Stop at step 155" in page
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)


def test_a_proxy_that_mentions_everything_is_refused_in_plain_words():
    done = CliRunner().invoke(app, ["goodhart", "--mentioned", "4"])

    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith("--mentioned does not fit.")


def test_a_page_that_cannot_be_written_is_one_clear_message(tmp_path: Path):
    done = CliRunner().invoke(app, ["goodhart", "--out", str(tmp_path / "nowhere" / "page.html")])

    assert type(done.exception).__name__ == "BackflipError"
