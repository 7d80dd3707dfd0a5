"""From `ReportData` to one self-contained HTML file. Model output is hostile: everything is escaped.

The page runs from file:// without a network; its policy (CSP) allows only its own scripts, by their
hashes, and no connection at all.
"""

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from backflip.report import alarm, palette, plots, tables, words
from backflip.report.data import ReportData, as_dict
from backflip.report.drawing import Figure
from backflip.report.stop import best_of_said

BESIDE = ("attributes-path", "steps-together", "steps-spread", "steps-watched")
"""The small figures under the panel."""


def build_report(data: ReportData) -> str:
    """The whole page. Panels without data are left out."""
    figures = plots.figures(data)
    return render(
        "report.html.j2",
        figures,
        data=data,
        headline=words.headline(data),
        circumstances=words.circumstances(data),
        believe=words.believe(data),
        key_figures=words.key_figures(data),
        figures=figures,
        step_figures=[f for name, f in figures.items() if name.startswith("steps-") and name not in BESIDE],
        beside=[figures[name] for name in BESIDE if name in figures],
        best_of_n=best_of_said(data.best_of),
        forest=tables.forest(data.headline.attributes) if data.headline else None,
        versions=tables.versions(data),
        alarm_looks=alarm.table(data),
        stages=tables.stages(data),
        fits=tables.fits(data),
        raters=tables.raters(data.raters),
        health=tables.health(data.steps),
        every_step=tables.every_step(data.steps),
        timing=tables.timing(data.timing),
        data_json=script_json(as_dict(data)),
    )


def render(template: str, drawn: Mapping[str, Figure], **words: Any) -> str:
    """A page from its template: its words, the figures drawn on it, and the colours and scripts all pages share."""
    env = _environment()
    scripts = {"plotly": _plotly(), "own": _source(env, "report.js")}
    return env.get_template(template).render(
        css=Markup(_source(env, "report.css")),
        light=Markup(palette.css("light")),
        dark=Markup(palette.css("dark")),
        scripts={name: Markup(text) for name, text in scripts.items()},
        hashes=" ".join(f"'{_hash(text)}'" for text in scripts.values()),
        figures_json=script_json({name: {"data": f.data, "layout": f.layout} for name, f in drawn.items()}),
        swap_json=script_json(palette.SWAP),
        **words,
    )


def write_report(path: Path, data: ReportData) -> None:
    """Write the report's page to `path`; see `write_page`."""
    write_page(path, build_report(data))


def write_page(path: Path, text: str) -> None:
    """Write a page to `path`, all or nothing: a reader sees the old page or the new one, never half."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in, nor start another.

    Raises: ValueError when a number is not finite (JSON has no word for it).
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _environment() -> Environment:
    env = Environment(
        loader=PackageLoader("backflip.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"number": words.number, "percent": words.percent}
    return env


def _source(env: Environment, name: str) -> str:
    assert env.loader is not None
    return env.loader.get_source(env, name)[0]


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    assert "</script" not in text.lower()
    return text


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
