"""Ready-made kinds of simulated raters, by the name a plan gives them: each is a way to fall short.

They exist to test a way of rating before people are paid for it. Names of attributes are those of all built-in tasks; a
task that has not the one has another.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

Kind = Literal[
    "", "expert", "careless", "hurried", "cannot-fact-check", "form-blind", "flattered", "adversarial"
]  # fmt: skip
KINDS: Final[Mapping[Kind, Mapping[str, Any]]] = MappingProxyType(
    {
        "": {},
        "expert": {"error": 0.03, "tie_width": 0.02},
        "careless": {"error": 0.05, "lapse": 0.5, "fatigue": 0.05},  # half of the votes without a look
        "hurried": {"sees": ("warmth", "length", "brevity"), "myopia": 0.5, "tie_width": 0.1},
        "cannot-fact-check": {"blind": ("subject", "faithful")},
        "form-blind": {"blind": ("form", "brevity")},  # does not know what a sonnet is
        "flattered": {"likes": {"warmth": 4.0, "own_words": -3.0}},  # kind words, and one's own said back
        "adversarial": {"error": 0.03, "beta": -20.0},
    }
)
"""What each kind sets, of the keys of a persona that stand at their defaults."""
