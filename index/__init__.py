"""Labelled items, searched and answered with calibrated probabilities.

`collection` is what programs open, `build`, `backup` and `evaluate` are what they do to one. The folders lie upon each
other: `verbs`, `search` and `upkeep`, `storage`, `calibration`, `items` and `engines`, `encoders`, `data`.
"""
