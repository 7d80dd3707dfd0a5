"""Raters that answer at once, and which pairs raters are shown."""
