"""Backflip turns people's judgements into a better model, and shows where the score stops meaning what you want."""

__version__ = "0.1.0"
