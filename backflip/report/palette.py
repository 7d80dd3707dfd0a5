"""The page's colours: one name, one tone for a light page, one for a dark page (each at least 4.5:1 there)."""

from typing import NamedTuple


class Tone(NamedTuple):
    """One colour in both themes, as CSS spells it."""

    light: str
    dark: str


TONES = {
    "page": Tone("#f7f7f5", "#121417"),
    "surface": Tone("#fffffe", "#1b1e23"),
    "ink": Tone("#1c1e21", "#e9eaec"),
    "muted": Tone("#5d646d", "#a0a8b2"),
    "rule": Tone("#dedfdb", "#33383f"),
    "grid": Tone("#e9eae6", "#282c32"),
    "proxy": Tone("#b54708", "#f7a35c"),
    "truth": Tone("#1a5fb4", "#7ab0ff"),
    "after": Tone("#0b6e5f", "#4cc9b0"),
    "before": Tone("#6b7077", "#9da5af"),
    "proxy-band": Tone("rgba(181,71,8,0.15)", "rgba(247,163,92,0.17)"),
    "truth-band": Tone("rgba(26,95,180,0.15)", "rgba(122,176,255,0.17)"),
    "after-band": Tone("rgba(11,110,95,0.16)", "rgba(76,201,176,0.17)"),
    "before-band": Tone("rgba(107,112,119,0.16)", "rgba(157,165,175,0.17)"),
}

LIGHT = {name: tone.light for name, tone in TONES.items()}
"""Figures are drawn in these; the page's script swaps them for the dark ones."""

SWAP = {tone.light: tone.dark for tone in TONES.values()}


def css(theme: str) -> str:
    """The colours as CSS variables, `--ink: #1c1e21; ...`."""
    return " ".join(f"--{name}: {getattr(tone, theme)};" for name, tone in TONES.items())
