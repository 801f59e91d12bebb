"""What a fit of integers says of itself in its manifest, whatever its products are part of: blocks or graphs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mmcompress.compress.int8.samples import SHUFFLED
from mmcompress.config import FitConfig
from mmcompress.data.batches import count_up_to
from mmcompress.data.sentences import SENTENCES
from mmcompress.data.spec import is_photos, is_stream
from mmcompress.seen import JUDGED_ON, SEEN, JudgedOn, Seen


def fit_facts(
    config: FitConfig,
    spec: str,
    choices: Mapping[str, object],
    ranking: Mapping[str, float],
    kept: Collection[str],
    judged_on: JudgedOn,
) -> dict[str, Any]:
    """Which products stay in float and why, what was chosen for the others, which samples of `spec` were seen: no more
    than there are, since nothing is shown twice, and which of them judged.

    `ranking` has the drift of each product by itself, `kept` the names of those in float.
    """
    asked = -(-config.samples // config.batch) * config.batch
    seen = asked if is_stream(spec) else count_up_to(asked, spec)
    return {
        "kept": sorted(kept),
        "choices": choices,
        "sensitivity": [
            {"module": name, "drift": float(f"{drift:.4g}"), "kept": name in kept} for name, drift in ranking.items()
        ],
        "budget": config.max_drop if config.sensitivity else None,
        "texts": SENTENCES if is_photos(spec) else "captions",
        SEEN: Seen(pairs=seen, seed=config.seed, buffer=SHUFFLED).model_dump(),
        JUDGED_ON: judged_on,
    }
