"""The fixture `checkpoint`: a random checkpoint artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_clip import clip_of, config_of, tensors_of, wide_ranges, write_checkpoint

from mmcompress.artifact import Artifact


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Artifact]:
    """Write a checkpoint artifact of a random model."""

    def make(calibrated: bool = True, **changes: Any) -> Artifact:
        config = config_of(**changes)
        ranges = wide_ranges(config) if calibrated else None
        return write_checkpoint(tmp_path / "checkpoint", config, tensors_of(clip_of(config)), ranges)

    return make
