"""Policies: how a policy climbs a reward without leaving its reference too far behind."""
