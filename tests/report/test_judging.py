"""Gates: what fails, what passes, and what is said of a change inside its interval."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from report_run import make_run

from mmcompress.config import validated
from mmcompress.errors import UsageError
from mmcompress.gates import Gates
from mmcompress.report.document import ReportDocument
from mmcompress.report.judging import judged
from mmcompress.report.report import joined
from mmcompress.report.sentences import few_warnings, headlines, highlights

Report = dict[str, Any]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("run")
    return dict(json.loads(joined("run", make_run(folder), folder / "report").to_json()))


@pytest.fixture
def report(measured: Report) -> Report:
    """A copy that a test may change."""
    return dict(json.loads(json.dumps(measured)))


def model(report: Report) -> ReportDocument:
    return ReportDocument.model_validate_json(json.dumps(report))


def one(report: Report, baseline: Report | None = None, **gates: Any) -> Report:
    (verdict,) = judged(model(report), Gates(**gates), None if baseline is None else model(baseline))
    return verdict.model_dump()


@pytest.mark.parametrize(
    ("gates", "passed", "value"),
    [
        ({"max": {"p99_ms": 0.7}}, True, 0.52 * 1.31),
        ({"max": {"p99_ms": 0.6}}, False, 0.52 * 1.31),
        ({"max": {"p99_ms": 1.0}, "backend": "onnxruntime"}, False, 0.88 * 1.31),
        ({"max": {"p50_ms": 3.4}, "batch": 8}, True, 0.52 * 8**0.9),
        ({"min": {"top1": 0.15}}, True, 0.189),
        ({"min": {"top1": 0.2}}, False, 0.189),
        ({"min": {"i2t_r10": 0.45}, "row": "distilled"}, True, 0.452),
        ({"max": {"bytes": 6020}}, True, 6020.0),
        ({"max": {"int8_against_fp32.flip_rate": 0.02}}, False, 0.021),
        ({"min": {"old_index.i2t_r10": 0.4}}, True, 0.44 * 0.97),
        ({"min": {"unseen.i2t_r10": 0.2}}, False, 0.44 * 0.4),
    ],
)
def test_limits_on_figures(report: Report, gates: Report, passed: bool, value: float) -> None:
    verdict = one(report, **gates)
    assert (verdict["passed"], verdict["significant"]) == (passed, None)
    assert verdict["value"] == pytest.approx(value)


def test_a_drop_past_its_limit_fails_with_its_paired_interval(report: Report) -> None:
    verdict = one(report, max_drop={"i2t_r10": 0.01})
    assert (verdict["passed"], verdict["significant"], verdict["row"]) == (False, True, "int8")
    assert verdict["value"] == pytest.approx(0.478 - 0.44)
    assert verdict["interval"] == pytest.approx((0.038 - 0.016, 0.038 + 0.017)), "of drift's r10_change, turned over"
    assert verdict["note"] == "against teacher"


def test_a_drop_inside_its_interval_is_said_to_be_not_significant(report: Report) -> None:
    report["rows"][-1]["r10_change"] = {"i2t": -0.038, "ci95": [-0.08, 0.004], "significant": False}
    verdict = one(report, max_drop={"i2t_r10": 0.01})
    assert (verdict["passed"], verdict["significant"]) == (True, False)
    assert verdict["note"] == "not significant: the 95% interval includes no change; against teacher"
    strict = one(report, max_drop={"i2t_r10": 0.01}, strict=True)
    assert (strict["passed"], strict["significant"]) == (False, False)


def test_an_established_drop_fails_although_its_interval_holds_the_limit(report: Report) -> None:
    report["rows"][-1]["r10_change"] = {"i2t": -0.038, "ci95": [-0.07, -0.006], "significant": True}
    assert one(report, max_drop={"i2t_r10": 0.03})["passed"] is False


def test_without_a_paired_interval_the_rows_own_are_taken_as_independent(report: Report) -> None:
    """Half width sqrt(a^2 + b^2), by hand: both rows have 0.0185 at R@1."""
    verdict = one(report, max_drop={"i2t_r1": 0.01})
    middle, half = 0.215 - 0.189, np.hypot(0.0185, 0.0185)
    assert verdict["interval"] == pytest.approx((middle - half, middle + half))
    assert verdict["passed"] and "not significant" in verdict["note"] and "unpaired" in verdict["note"]
    assert "no interval is known" in one(report, max_drop={"cosine_mean": 0.5})["note"]


def test_drops_on_the_old_index_are_from_the_recall_of_its_owner(report: Report) -> None:
    """The index is the first row's, which has no figure of its own for it."""
    report["rows"][0]["metrics"]["old_index"] = None
    report["rows"][-1]["metrics"]["ci95"]["old_index_i2t_r10"] = [0.40, 0.46]
    verdict = one(report, max_drop={"old_index.i2t_r10": 0.1})
    middle, half = 0.478 - 0.44 * 0.97, np.hypot(0.0225, 0.03)
    assert verdict["value"] == pytest.approx(middle)
    assert verdict["interval"] == pytest.approx((middle - half, middle + half))
    assert one(report, max_drop={"unseen.i2t_r10": 1.0})["interval"] is not None


def test_a_drop_of_exactly_its_limit_passes(report: Report) -> None:
    report["rows"][0]["metrics"]["i2t_r10"], report["rows"][-1]["metrics"]["i2t_r10"] = 0.3, 0.29
    assert 0.3 - 0.29 > 0.01, "in floating point"
    assert one(report, max_drop={"i2t_r10": 0.01}, strict=True)["passed"]


def test_a_gain_passes_every_drop_gate(report: Report) -> None:
    report["rows"][-1]["metrics"]["i2t_r10"] = 0.6
    assert one(report, max_drop={"i2t_r10": 0.0})["passed"]


@pytest.mark.parametrize(
    "gates", [{"max": {"energy_mj": 5}}, {"max": {"p99_ms": 5}, "batch": 3}, {"min_speedup": 2, "batch": 3}]
)
def test_what_was_not_measured_fails(report: Report, gates: Report) -> None:
    verdict = one(report, **gates)
    assert (verdict["passed"], verdict["value"]) == (False, None)
    assert verdict["note"].startswith("not measured")


def test_int8_that_was_not_held_against_its_own_fp32_does_not_pass(report: Report) -> None:
    report["rows"][-1]["int8_against_fp32"] = None
    verdict = one(report, max={"int8_against_fp32.flip_rate": 0.5})
    assert (verdict["passed"], verdict["value"]) == (False, None)
    assert "its own FP32 is no row before it" in verdict["note"]


def test_speedup_is_bench_s_interleaved_ratio(report: Report) -> None:
    verdict = one(report, min_speedup=8)
    assert (verdict["passed"], verdict["value"], verdict["interval"]) == (True, 8.29, (8.07, 8.48))
    assert one(report, min_speedup=9)["passed"] is False


def test_a_missing_gain_is_not_excused_by_its_interval(report: Report) -> None:
    for ratio in report["ratios"]:
        ratio.update(speedup=1.05, ci95=[0.9, 1.2])
    assert one(report, min_speedup=2)["passed"] is False
    assert one(report, min_speedup=1.0)["passed"] is True


def test_baseline_is_the_same_row_of_another_report(report: Report, measured: Report) -> None:
    report["rows"][-1]["metrics"]["i2t_r10"] = 0.40
    report["rows"][-1]["metrics"]["ci95"]["i2t_r10"] = [0.395, 0.405]
    verdict = one(report, measured, max_drop={"i2t_r10": 0.01})
    assert (verdict["passed"], verdict["value"]) == (False, pytest.approx(0.04))
    assert "against the baseline" in verdict["note"]


def test_a_slowdown_against_the_baseline_is_found_and_noise_is_not(report: Report, measured: Report) -> None:
    entry = report["rows"][-1]["fastest"]
    slower = next(e for e in report["rows"][-1]["latency"] if (e["backend"], e["batch"]) == (entry["backend"], 1))
    slower["p50_ms"] *= 1.2
    slower["rounds_ms"] = [one * 1.2 for one in slower["rounds_ms"]]
    verdict = one(report, measured, min_speedup=0.95)
    assert (verdict["passed"], verdict["significant"]) == (False, True)
    assert verdict["value"] == pytest.approx(1 / 1.2)
    slower["p50_ms"] /= 1.12
    slower["rounds_ms"] = [0.4, 0.9, 0.5, 0.7, 0.45, 0.8]
    noisy = one(report, measured, min_speedup=0.95)
    assert (noisy["passed"], noisy["significant"]) == (True, False) and "not significant" in noisy["note"]


def test_baselines_that_do_not_fit_fail(report: Report, measured: Report) -> None:
    other = {**measured, "test": {**measured["test"], "images": 5}}
    assert "another test set" in one(report, other, max_drop={"i2t_r10": 1.0})["note"]
    without = {**measured, "rows": measured["rows"][:2]}
    assert "the baseline has no row int8" in one(report, without, max_drop={"i2t_r10": 1.0})["note"]
    assert "the baseline has no such latency" in one(report, without, min_speedup=1)["note"]
    assert not one(report, without, max_drop={"i2t_r10": 1.0})["passed"]


@pytest.mark.parametrize(
    ("metric", "candidates", "images", "said"),
    [
        ("i2t_r10", 10, 1759, "R@10 is 100% of any model that chooses among 10 texts"),
        ("i2t_r1", 1, 1759, "R@1 is 100% of any model that chooses among 1 texts"),
        ("t2i_r5", 1852, 4, "R@5 is 100% of any model that chooses among 4 images"),
        ("old_index.i2t_r10", 9, 1759, "R@10 is 100% of any model that chooses among 9 texts"),
        ("i2t_r10", 11, 1759, None),
        ("t2i_r10", 10, 1759, None),
        ("top1", 10, 1, None),
    ],
)
def test_a_recall_that_every_model_has_passes_no_gate(
    report: Report, metric: str, candidates: int, images: int, said: str | None
) -> None:
    report["test"] |= {"candidates": candidates, "images": images}
    for gates in ({"max_drop": {metric: 0.9}}, {"min": {metric: 0.01}}):
        verdict = one(report, **gates)
        assert verdict["passed"] == (said is None)
        assert said is None or verdict["note"] == f"not measured; the gate is meaningless: {said}"


def test_headlines_are_of_a_recall_that_says_something(report: Report) -> None:
    for candidates, recall in ((11, "R@10"), (10, "R@5"), (5, "R@1"), (1, None)):
        report["test"]["candidates"] = candidates
        kept = [line for line in headlines(model(report)) if " keeps " in line]
        assert [line.split("'s ")[1].split(",")[0] for line in kept] == ([] if recall is None else [recall])
        shown = [figure.name for figure in highlights(model(report)) if figure.name.endswith(" kept")]
        assert shown == ([] if recall is None else [f"of {recall} kept"])
    assert "R@10 is 100% of any model that chooses among 1 texts." in few_warnings(model(report))


def test_a_disturbed_latency_says_so(report: Report) -> None:
    note = one(report, max={"p99_ms": 100}, row="pruned")["note"]
    assert note == "openvino on AMD EPYC, batch 1, noisy"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"max_drop": {"i2t_r100": 0.1}}, "there is no metric 'i2t_r100'; did you mean 'i2t_r10'?"),
        ({"max_drop": {"i2t_r10": -1.0}}, "a drop of -1 in 'i2t_r10' is a gain: give a limit with min"),
        ({"max": {"p99_ms": 1e308}}, "no figure reaches the limit of 1e+308 for 'p99_ms'"),
        ({"max_drop": 2}, "nothing drops by 2, all of 'i2t_r10' is 1: one point is 0.01"),
        ({"max_drop": {"p99_ms": 0.1}}, "'p99_ms' does not drop, it is better when lower: give a limit with max"),
        ({"max": {"p99": 5}}, "there is no metric 'p99'; did you mean 'p99_ms'?"),
        ({"max": {"p99_ms": float("nan")}}, "max.p99_ms is nan: Input should be a finite number"),
        ({"maxx": {}}, "unknown key 'maxx'"),
    ],
)
def test_wrong_gates_are_told_before_anything_runs(values: Report, what: str) -> None:
    with pytest.raises(UsageError) as raised:
        validated(Gates, values, "recipe.toml: stage 'report'")
    assert what in raised.value.what


def test_an_unknown_row_is_told(report: Report) -> None:
    with pytest.raises(UsageError, match="the report has no row 'int9'"):
        judged(model(report), Gates(max={"p99_ms": 5}, row="int9"))


@pytest.mark.parametrize("against_baseline", [False, True])
def test_a_drop_between_rows_that_say_nothing_fails(report: Report, against_baseline: bool) -> None:
    for row in report["rows"]:
        row["collapsed"] = "its retrieval is no better than chance"
    verdict = one(report, report if against_baseline else None, max_drop={"i2t_r10": 0.9})
    assert not verdict["passed"]
    assert "the gate is meaningless: in both rows its retrieval is no better than chance" in verdict["note"]
    report["rows"][0]["collapsed"] = None
    if not against_baseline:
        assert one(report, max_drop={"i2t_r10": 0.9})["passed"], "a drop from a sound row is one"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_is_no_number_fails_every_gate(report: Report, number: float) -> None:
    last = report["rows"][-1]
    last["metrics"]["i2t_r10"] = number
    for entry in last["latency"]:
        entry["p99_ms"] = number
    limits = ({"max": {"i2t_r10": 1}}, {"min": {"i2t_r10": 0}}, {"max_drop": {"i2t_r10": 1}}, {"max": {"p99_ms": 9}})
    for limit in limits:
        verdict = one(report, **limit)
        assert (verdict["passed"], verdict["value"]) == (False, None)
