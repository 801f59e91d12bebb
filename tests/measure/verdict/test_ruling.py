"""The ruling: which file is recommended for which ratios and losses, and in which words."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from held_out import held_out_drift

from mmcompress.artifact import Artifact
from mmcompress.budget import Budget
from mmcompress.config import Backend, Precision
from mmcompress.errors import GateFailedError
from mmcompress.manifest import Graph
from mmcompress.measure.estimate import Ratio
from mmcompress.measure.verdict.contest import Contestant, Entrant
from mmcompress.measure.verdict.ruling import MARGIN, enforce, named, ruled, sentence

GRAPH = Graph(file="image-fp32.onnx", tower="image", precision="fp32", inputs=(), outputs=())


def contestant(name: str, precision: Precision, backend: Backend) -> Contestant:
    graph = GRAPH.model_copy(update={"precision": precision})
    return Contestant(name, precision, {"image": Entrant(Path("image-fp32.onnx"), graph, backend, 2)})


FP32, FP16, INT8 = (
    contestant("fp32", "fp32", "openvino"),
    contestant("fp16", "fp16", "openvino"),
    contestant("all", "int8", "openvino"),
)
ORT = contestant("fp32", "fp32", "onnxruntime")


def faster_of(times_ms: dict[Contestant, float], width: float = 0.01) -> Any:
    """Ratios as a run would give them whose interval is `width` to each side."""

    def faster(fast: Contestant, slow: Contestant) -> Ratio:
        speedup = times_ms[slow] / times_ms[fast]
        return Ratio(speedup, speedup - width, speedup + width)

    return faster


def rule(
    int8: float,
    fp32: float,
    ort: float,
    fp16: float,
    lost: float = 0.0,
    width: float = 0.01,
    flips: float = 0.0,
    max_flips: float | None = 0.02,
    images: int = 10**8,
) -> tuple[Any, str]:
    faster = faster_of({INT8: int8, FP32: fp32, ORT: ort, FP16: fp16}, width)
    drift, budget = held_out_drift(r10_lost=lost, flip_rate=flips), Budget(0.005, max_flips, images)
    ruling = ruled(INT8, drift, [FP32, ORT, FP16], faster, budget)
    return ruling, sentence(ruling, INT8, drift, faster, budget, 400)


def test_int8_has_to_beat_the_fastest_float_graph_of_any_precision_and_backend() -> None:
    ruling, said = rule(int8=1.0, fp32=2.0, ort=1.2, fp16=1.5)
    assert ruling.int8 and ruling.ship is INT8 and ruling.to_beat is ORT
    assert said == (
        "Ship INT8 on OpenVINO (all): it is 1.20 times as fast as FP32 on ONNX Runtime (95% interval 1.19 to 1.21), "
        "the fastest float graph, and on 400 held-out pairs it loses 0.00% of the R@10 hits (0.50% were allowed) and "
        "answers 0.00% of the images otherwise (2.00% were allowed). "
        "On OpenVINO alone, it is 2.00 times as fast as FP32 (95% interval 1.99 to 2.01)."
    )
    ruling, said = rule(int8=1.0, fp32=2.0, ort=0.9, fp16=1.5)
    assert not ruling.int8 and ruling.ship is ruling.to_beat is ORT
    assert said.startswith("Do not ship INT8 on OpenVINO (all, the best of the candidates): it is 0.90 times as fast")
    assert "Ship FP32 on ONNX Runtime, the fastest float graph." in said


@pytest.mark.parametrize("int8", [1.0, 3.0])
def test_photos_are_not_spoken_of_as_if_they_had_captions(int8: float) -> None:
    faster, budget = faster_of({INT8: int8, FP32: 2.0}), Budget(0.005, 0.02, 100)
    ruling = ruled(INT8, held_out_drift(), [FP32], faster, budget)
    said = sentence(ruling, INT8, held_out_drift(), faster, budget, 76, "60 sentences that ship")
    assert "pairs" not in said and ("on 76 held-out photos it loses" in said) == ruling.int8 == (int8 < 2)
    truth = " The photos have no captions: right is what FP32 answers among 60 sentences that ship."
    assert said.endswith(truth)
    assert truth not in sentence(ruling, INT8, held_out_drift(), faster, budget, 76)


@pytest.mark.parametrize(
    ("speedup", "width", "recommended"),
    [(1.04, 0.019, True), (1.04, 0.03, False), (1.019, 0.001, False), (1.3, 0.1, True), (0.98, 0.01, False)],
)
def test_the_whole_interval_has_to_lie_beyond_two_percent(speedup: float, width: float, recommended: bool) -> None:
    ruling, _ = rule(int8=1 / speedup, fp32=1.0, ort=5, fp16=5, width=width)
    assert ruling.int8 == recommended == (ruling.speedup.low >= MARGIN)


def test_drift_beyond_the_budget_is_an_obstacle_however_fast() -> None:
    assert rule(1.0, 3.0, 3.1, 3.2, lost=0.005)[0].int8
    ruling, said = rule(1.0, 3.0, 3.1, 3.2, lost=0.0051)
    assert not ruling.int8 and ruling.ship is FP32
    assert "it loses 0.51% of the R@10 hits, and 0.50% were allowed" in said and "times as fast" not in said

    ruling, said = rule(1.0, 3.0, 3.1, 3.2, flips=0.0201)
    assert not ruling.int8 and "it answers 2.01% of the images otherwise, and 2.00% were allowed" in said
    ruling, said = rule(1.0, 3.0, 3.1, 3.2, flips=0.5, max_flips=None)
    assert ruling.int8 and "answers 50.00% of the images otherwise (any were allowed)" in said


def test_a_limit_that_chance_may_have_passed_is_no_obstacle_and_is_said() -> None:
    ruling, said = rule(1.0, 3.0, 3.1, 3.2, flips=0.03, images=100)
    assert ruling.int8 and said.startswith("Ship INT8") and len(ruling.doubts) == 1
    assert f"In doubt: {ruling.doubts[0]}." in said
    ruling, _ = rule(1.0, 3.0, 3.1, 3.2, flips=0.03, images=10_000)
    assert not ruling.int8 and not ruling.doubts


@pytest.mark.parametrize("doubts", [(), ("it answers 3.00% of the images otherwise",)])
def test_strict_accepts_no_doubt(doubts: tuple[str, ...]) -> None:
    said = {"int8": True, "sentence": "Ship it.", "doubts": doubts}
    artifact = cast(Artifact, SimpleNamespace(path="v", manifest=SimpleNamespace(facts={"recommendation": said})))
    enforce(artifact, strict=False)
    if not doubts:
        enforce(artifact, strict=True)
        return
    with pytest.raises(GateFailedError, match="INT8 is in doubt: Ship it"):
        enforce(artifact, strict=True)


def test_the_plainer_float_graph_stays_unless_another_is_clearly_faster() -> None:
    ruling, said = rule(int8=1.0, fp32=1.0, ort=1.5, fp16=0.99)
    assert ruling.ship is FP32 and ruling.to_beat is FP16
    assert f"{named(FP16)} is not clearly faster (1.01 times as fast" in said
    assert rule(int8=1.0, fp32=1.0, ort=1.5, fp16=0.9)[0].ship is FP16


def test_a_tower_that_is_all_float_is_named_so() -> None:
    text = Entrant(Path("text-fp32.onnx"), GRAPH.model_copy(update={"tower": "text"}), "openvino", 2)
    assert named(replace(INT8, towers={**INT8.towers, "text": text})) == "INT8 on OpenVINO with the text tower in FP32"
    assert named(INT8) == "INT8 on OpenVINO"


def test_both_obstacles_are_named_in_every_order_of_speed() -> None:
    for times in itertools.permutations((1.0, 1.3, 1.7, 2.2)):
        ruling, said = rule(*times, lost=0.02)
        slower = times[0] > min(times[1:])
        assert len(ruling.obstacles) == 1 + slower and not ruling.int8
        assert ruling.to_beat is (FP32, ORT, FP16)[times[1:].index(min(times[1:]))]
        assert all(obstacle in said for obstacle in cast(tuple[str, ...], ruling.obstacles))


def test_nan_is_within_no_budget_and_beats_nothing() -> None:
    nan = float("nan")
    for moved in (held_out_drift(r10_lost=nan), held_out_drift(flip_rate=nan)):
        assert not Budget(0.005, 0.02, 100).holds(moved.cost)
    ruling, _ = rule(int8=1.0, fp32=2.0, ort=2.0, fp16=2.0, width=nan)
    assert not ruling.int8
