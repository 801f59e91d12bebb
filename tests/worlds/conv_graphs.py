"""The convolutional teacher of `conv_teacher.py` as an ONNX artifact that finds the squares of `matched_clip.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from conv_teacher import matched, teacher
from matched_clip import write_squares

from mmcompress.artifact import Artifact
from mmcompress.compress import trace
from mmcompress.config import TeacherConfig, TraceConfig
from mmcompress.data.batches import batches
from mmcompress.data.preprocess import normalize
from mmcompress.pipeline.run import run_stage
from mmcompress.stages import STAGES


def traced_squares(folder: Path) -> tuple[Artifact, Path]:
    """The artifact `folder/traced`, as the stage `trace` writes it, and the squares."""
    data = write_squares(folder)
    preprocessing = teacher().preprocessing
    (batch,) = batches(str(data), preprocessing, batch=60)
    pixels = torch.from_numpy(normalize(batch.pixels, preprocessing))
    made = teacher(matched(pixels, [texts[0] for texts in batch.captions]))
    source = Path(__file__).with_name("conv_teacher.py")
    config = TraceConfig(teacher=TeacherConfig(source=f"{source}:teacher"))
    real, trace.load_teacher = trace.load_teacher, lambda *_: made
    try:
        return run_stage(STAGES["trace"], config, {}, (), folder / "traced"), data
    finally:
        trace.load_teacher = real
