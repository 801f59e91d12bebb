"""What training and long loops show of themselves."""

from __future__ import annotations

import math
import re
import time

import pytest
import torch

from mmcompress import progress
from mmcompress.compress.train.meter import Figures, Meter


def test_a_meter_tells_speed_waiting_terms_memory_and_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    now, drawn, said = 100.0, {}, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = Meter(
        16, torch.device("cpu"), lambda told: said.append(told()), lambda step, more: drawn.update({step: more})
    )
    assert meter.images_per_s is None, "what was not timed is not a figure"
    with meter.waiting():
        now += 1
    now += 3
    meter.tell(8, 0, Figures(2.0, 0.5, {"cosine": 0.3, "relational": 0.2}), 1e-3)
    meter.tell(9, 2, Figures(2.0, math.nan, {"loss": math.nan}), 1e-3)
    first = r"4 images/s, 25% waiting for data, loss 0\.5 \(cosine 0\.3, relational 0\.2\), [\d.,]+ MB"
    assert re.fullmatch(first, said[0])
    assert re.fullmatch(r"8 images/s, 25% waiting for data, loss nan, [\d.,]+ MB, 2 skipped", said[1])
    assert drawn[8] == {
        "loss/cosine": 0.3,
        "loss/relational": 0.2,
        "gradient norm": 2.0,
        "learning rate": 1e-3,
        "skipped": 0,
        "images per second": 4.0,
        "waiting for data": 0.25,
    }


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
