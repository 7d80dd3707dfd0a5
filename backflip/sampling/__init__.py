"""Sampling: the decode loop that answers prompts, and the scoring of given answers."""
