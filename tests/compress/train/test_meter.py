"""What training and long loops show of themselves."""

from __future__ import annotations

import re
import time

import pytest
import torch

from mmcompress import progress
from mmcompress.compress.train.meter import Meter


def test_a_meter_tells_speed_waiting_terms_memory_and_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = Meter(batch=16, device=torch.device("cpu"))
    with meter.waiting():
        now += 1
    meter.steps, now = 10, now + 3
    assert (meter.images_per_s, meter.waiting_share) == (40.0, 0.25)
    said = meter.told(0.5, {"cosine": 0.3, "relational": 0.2}, 0)
    assert re.fullmatch(
        r"40 images/s, 25% waiting for data, loss 0\.5 \(cosine 0\.3, relational 0\.2\), [\d.,]+ MB", said
    )
    assert meter.told(None, {"loss": 0.3}, 2).endswith(" MB, 2 skipped") and "(" not in meter.told(0.5, {"loss": 1}, 0)


def test_a_log_has_a_line_now_and_then_and_a_quiet_count_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, quiet, lines in ((60.0, False, 0), (-1.0, False, 2), (-1.0, True, 0)):
        monkeypatch.setattr(progress, "LOG_SECONDS", seconds)
        with progress.counted("distilling x", 9, start=3, quiet=quiet) as count:
            for _ in range(2):
                count(lambda: "40 images/s [cosine]")
        said = capsys.readouterr().err.splitlines()
        assert len(said) == lines
        if lines:
            assert re.fullmatch(r"  distilling x: 5 of 9, 40 images/s \[cosine\], \d+ s left", said[-1])
    monkeypatch.setattr(progress, "LOG_SECONDS", -1.0)
    assert list(progress.track("ab", "letters", None)) == ["a", "b"]
    assert re.fullmatch(r"  letters: 2, [\d.]+/s", capsys.readouterr().err.splitlines()[-1])
