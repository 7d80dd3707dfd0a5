"""Rewards: from votes to a scorer that predicts them."""
