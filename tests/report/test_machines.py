"""Reports of several devices: the same rows, latencies by machine, and a warning where the files differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_run import ROWS, bench_document, drift_document, graph, make_run, measurement, onnx_artifact

from mmcompress.artifact import Artifact
from mmcompress.errors import UsageError
from mmcompress.gates import Gates
from mmcompress.pipeline import standalone
from mmcompress.report.checking import read_report
from mmcompress.report.judging import judged


def second_bench(folder: Path, rows: list[Artifact], cpu: str = "Cortex-A78AE") -> Artifact:
    """A bench of the same rows on another machine, three times as slow."""
    document = bench_document(cpu)
    for row in document["rows"]:
        for entry in row["latency"]:
            entry["p50_ms"] *= 3
    return measurement(folder / "bench", "bench", document, rows)


def document_of(*folders: Path) -> dict[str, Any]:
    return dict(json.loads(standalone.report(list(folders), folders[0] / "all").file("report.json").read_text()))


def test_a_bench_that_was_copied_back_joins_the_rows_that_it_ran(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "server")[:5]
    second_bench(tmp_path / "jetson", rows)
    found = document_of(tmp_path / "server", tmp_path / "jetson")
    assert [machine["id"] for machine in found["machines"]] == ["AMD EPYC", "Cortex-A78AE"]
    row = found["rows"][-1]
    assert [row["row"] for row in found["rows"]] == list(ROWS)
    assert {entry["machine"] for entry in row["latency"]} == {"AMD EPYC", "Cortex-A78AE"}
    assert row["fastest"]["machine"] == "AMD EPYC", "of the first machine, so that rows are compared on the same one"
    assert [(e["machine"], e["p50_ms"]) for e in row["fastest_elsewhere"]] == [("Cortex-A78AE", pytest.approx(1.56))]
    assert not any("other files" in line or "differs" in line for line in found["warnings"])
    assert found["accuracy_from"] == "../drift"
    assert len(found["headlines"]) == 2, "one machine's ratio"


def test_a_finished_report_of_another_machine_is_taken_over(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "server")[:5]
    jetson = second_bench(tmp_path / "jetson", rows)
    sent = standalone.report([*(row.path for row in rows), jetson.path], tmp_path / "sent")
    found = document_of(tmp_path / "server", sent.path)
    assert [machine["id"] for machine in found["machines"]] == ["AMD EPYC", "Cortex-A78AE"]
    assert len(found["rows"][0]["latency"]) == 8
    assert found["rows"][-1]["fastest_elsewhere"][0]["machine"] == "Cortex-A78AE"


def test_a_finished_report_of_two_benches_of_one_machine_is_taken_over(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "server")[:5]
    first, second = (second_bench(tmp_path / name, rows) for name in ("jetson", "again"))
    sent = standalone.report([*(row.path for row in rows), first.path, second.path], tmp_path / "sent")
    found = document_of(tmp_path / "server", sent.path)
    assert [entry["machine"] for entry in found["rows"][0]["latency"]] == ["AMD EPYC"] * 4 + ["Cortex-A78AE"] * 8


def test_a_bench_beside_its_own_report_counts_once(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "server")[:5]
    jetson = second_bench(tmp_path / "jetson", rows)
    sent = standalone.report([*(row.path for row in rows), jetson.path], tmp_path / "sent")
    once = document_of(tmp_path / "server", jetson.path)
    found = document_of(tmp_path / "server", jetson.path, sent.path)
    assert len(found["rows"][0]["latency"]) == 8 and len(found["machines"]) == 2
    assert sorted(map(repr, found["ratios"])) == sorted(map(repr, once["ratios"]))
    assert found["headlines"] == once["headlines"]
    assert not any("measured the same files" in line for line in found["warnings"])


def test_a_report_is_not_replaced_by_what_is_made_from_it(tmp_path: Path) -> None:
    make_run(tmp_path)
    old = standalone.report([tmp_path]).path
    with pytest.raises(UsageError, match="nothing to report on"):
        standalone.report([old])
    with pytest.raises(UsageError, match=r"would replace .*report, which it is made from"):
        standalone.report([old, tmp_path / "bench"])
    assert (old / "report.html").is_file()


def test_two_machines_of_one_kind_are_told_apart(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "server")[:5]
    document = bench_document()
    document["environment"]["memory_bytes"] = 5
    measurement(tmp_path / "other" / "bench", "bench", document, rows)
    found = document_of(tmp_path / "server", tmp_path / "other")
    assert [machine["id"] for machine in found["machines"]] == ["AMD EPYC", "AMD EPYC (2)"]


def test_two_benches_of_one_machine_are_one_machine(tmp_path: Path) -> None:
    rows = make_run(tmp_path)[:5]
    measurement(tmp_path / "bench-again", "bench", bench_document(), rows)
    assert [machine["id"] for machine in document_of(tmp_path)["machines"]] == ["AMD EPYC"]


def test_figures_follow_a_folder_that_was_renamed(tmp_path: Path) -> None:
    """All of them; and other files that have the old name by now get none."""
    make_run(tmp_path)
    before = document_of(tmp_path)
    shutil.rmtree(tmp_path / "all")
    (tmp_path / "recovered").rename(tmp_path / "shipped")
    found, parts = document_of(tmp_path), ("rows", "ratios", "gallery", "warnings", "headlines")

    def sorted_parts(page: dict[str, Any]) -> dict[str, list[str]]:
        return {part: sorted(json.dumps(one).replace("recovered", "shipped") for one in page[part]) for part in parts}

    assert sorted_parts(found) == sorted_parts(before) and "recovered" not in json.dumps(found["rows"])
    shutil.rmtree(tmp_path / "all")
    onnx_artifact(tmp_path / "recovered", {**ROWS["recovered"], "macs": 5}, [graph("image", "fp32")])
    rows = {row["row"]: row for row in document_of(tmp_path)["rows"]}
    assert rows["shipped"]["latency"] and not rows["recovered"]["latency"]


def test_other_files_under_the_same_name_are_told(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "server")[:5]
    changed = {**ROWS["int8"], "macs": 5}
    other = onnx_artifact(tmp_path / "jetson" / "int8", changed, [graph("image", "int8"), graph("text", "int8")])
    second_bench(tmp_path / "jetson", [*rows[:4], other])
    found = document_of(tmp_path / "server", tmp_path / "jetson")
    told = "\n".join(found["warnings"])
    assert "jetson/bench measured other files under the same name: int8. What it says of them is left out" in told
    assert {entry["machine"] for entry in found["rows"][-1]["latency"]} == {"AMD EPYC"}, "none of the other files"
    assert {entry["machine"] for entry in found["rows"][0]["latency"]} == {"AMD EPYC", "Cortex-A78AE"}
    there = [ratio for ratio in found["ratios"] if ratio["machine"] != "AMD EPYC"]
    assert not [ratio for ratio in there if "int8" in (ratio["numerator"]["row"], ratio["denominator"]["row"])]
    assert "jetson/int8 differs from the first int8" in told and "is left out" in told
    assert found["rows"][-1]["macs"] == ROWS["int8"]["macs"] and len(found["rows"]) == 5


@pytest.mark.parametrize("name", ["int8", "recovered", "teacher"])
def test_figures_of_files_that_were_replaced_are_left_out(tmp_path: Path, name: str) -> None:
    make_run(tmp_path)
    shutil.rmtree(tmp_path / name)
    onnx_artifact(tmp_path / name, {**ROWS[name], "macs": 5}, [graph("image", "fp32"), graph("text", "fp32")])
    found = document_of(tmp_path)
    rows = {row["row"]: row for row in found["rows"]}
    assert rows[name]["latency"] == [] and rows[name]["metrics"]["i2t_r10"] is rows[name]["cosine_histogram"] is None
    others = [row for row in rows.values() if row["row"] != name]
    assert all(row["latency"] for row in others)
    known = [row["metrics"]["i2t_r10"] is not None for row in others]
    assert known == [name != "teacher"] * 4, "all were compared with the first"
    assert not [r for r in found["ratios"] if name in (r["numerator"]["row"], r["denominator"]["row"])]
    assert not [entry for entry in found["gallery"] if entry["row"] == name]
    against = [row["int8_against_fp32"]["row"] for row in others if row["int8_against_fp32"]]
    assert name not in against + [row["previous"]["row"] for row in others if row["previous"]]
    assert any(f"measured other files under the same name: {name}." in line for line in found["warnings"])


def test_the_gallery_names_the_row_that_answered_and_not_the_last_one(tmp_path: Path) -> None:
    make_run(tmp_path)
    onnx_artifact(tmp_path / "unmeasured", {**ROWS["int8"], "macs": 5}, [graph("image", "fp32"), graph("text", "fp32")])
    found = document_of(tmp_path)
    assert found["rows"][-1]["row"] == "unmeasured"
    page = (tmp_path / "all" / "report.html").read_text()
    assert "Images for which int8 gives another best text than teacher" in page


def test_accuracy_is_taken_once(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "server")[:5]
    second = drift_document()
    second["rows"][0]["metrics"]["i2t_r10"] = 0.9
    measurement(tmp_path / "jetson" / "drift", "drift", second, rows)
    found = document_of(tmp_path / "server", tmp_path / "jetson")
    assert found["rows"][0]["metrics"]["i2t_r10"] == 0.478 and found["other_tests"] == []


def test_pages_show_each_machine(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "server")[:5]
    second_bench(tmp_path / "jetson", rows)
    made = standalone.report([tmp_path / "server", tmp_path / "jetson"])
    page = made.file("report.html").read_text(encoding="utf-8")
    assert 'id="machines"' in page and page.count("R@10 against latency at batch 1 on") == 2
    lines = made.file("report.md").read_text(encoding="utf-8").splitlines()
    assert "| p50 at batch 1 | AMD EPYC | Cortex-A78AE |" in lines
    assert "| int8 | 0.52 ms | 1.56 ms |" in lines


def test_names_of_machines_and_rows_are_escaped(tmp_path: Path) -> None:
    """They stand in text, in attributes and inside of charts; `&lt;` is how each of them may show."""
    hostile = '<img src=x onerror="alert(1)">'
    row = onnx_artifact(tmp_path / hostile, ROWS["int8"], [graph("image", "int8"), graph("text", "int8")])
    bench = bench_document(hostile)
    bench["rows"][-1]["row"] = hostile
    measured = measurement(tmp_path / "bench", "bench", bench, [row])
    made = standalone.report([row.path, measured.path], tmp_path / "out")
    page = made.file("report.html").read_text(encoding="utf-8")
    assert "<img" not in page and page.count("&lt;img src=x") >= 5
    assert "| <img" not in made.file("report.md").read_text(encoding="utf-8")


def test_gates_hold_on_every_machine(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "server")[:5]
    second_bench(tmp_path / "jetson", rows)
    made = standalone.report([tmp_path / "server", tmp_path / "jetson"])
    verdicts = judged(read_report(made.path), Gates(max={"p50_ms": 1.0}))
    assert [(verdict.passed, verdict.note) for verdict in verdicts] == [
        (True, "openvino on AMD EPYC, batch 1"),
        (False, "openvino on Cortex-A78AE, batch 1"),
    ]


def test_of_several_measurements_of_the_same_files_it_is_said_which_counts_and_why(tmp_path: Path) -> None:
    rows = make_run(tmp_path)[:5]
    assert not any("counts" in line or "not shown" in line for line in document_of(tmp_path)["warnings"])
    slower = bench_document()
    for row in slower["rows"]:
        for entry in row["latency"]:
            entry["p50_ms"] *= 2
    again = measurement(tmp_path / "bench-again", "bench", slower, rows).path
    drift = measurement(tmp_path / "drift-again", "drift", drift_document(), rows).path
    second_bench(tmp_path / "jetson", rows)
    found = document_of(tmp_path, tmp_path / "jetson")
    (benches,) = (line for line in found["warnings"] if "lowest median counts" in line)
    assert benches.startswith(f"{tmp_path / 'bench'}, {again} measured the same files on AMD EPYC with ")
    assert found["rows"][-1]["fastest"]["p50_ms"] == pytest.approx(0.52), "the lower one"
    (drifts,) = (line for line in found["warnings"] if "not shown" in line)
    assert drifts.startswith(f"Accuracy is from {tmp_path / 'drift'}, the first of 2 drifts") and str(drift) in drifts
    assert found["accuracy_from"] == "../drift"


def test_benches_of_other_backends_are_no_choice(tmp_path: Path) -> None:
    rows = make_run(tmp_path)[:5]
    other = bench_document()
    for row in other["rows"]:
        row["latency"] = [{**one, "backend": "tensorrt"} for one in row["latency"] if one["backend"] == "openvino"]
    measurement(tmp_path / "bench-gpu", "bench", other, rows)
    assert not any("counts" in line for line in document_of(tmp_path)["warnings"])
