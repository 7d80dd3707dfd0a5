"""`backflip alarm plan`: what power costs."""

import json

from typer.testing import CliRunner

from backflip.cli.main import app
from backflip.core.errors import ConfigError


def test_the_plan_names_the_fewest_votes_that_are_enough():
    done = CliRunner().invoke(app, ["alarm", "plan", "--json", "--best", "0.7"])

    found = json.loads(done.output)
    caught = {row["judged"]: row["caught"] for row in found["rows"]}
    assert found["enough"] == min(n for n, share in caught.items() if share >= 0.9)
    assert caught[4] < caught[48]


def test_a_climb_that_ends_before_its_peak_is_refused():
    done = CliRunner().invoke(app, ["alarm", "plan", "--peak", "9", "--until", "4"])

    assert isinstance(done.exception, ConfigError)
