"""Drifts on held-out pairs, of which a test says only what it is about."""

from __future__ import annotations

from mmcompress.measure.verdict.document import HeldOutDrift

NONE = {name: 1.0 if "cosine" in name else 0.0 for name in HeldOutDrift.model_fields}


def held_out_drift(**figures: float) -> HeldOutDrift:
    return HeldOutDrift(**{**NONE, **figures})
