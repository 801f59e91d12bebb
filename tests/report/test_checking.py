"""`mmcompress check`: exit codes, the table, JSON and JUnit XML."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_run import make_run

from mmcompress.pipeline import standalone
from mmcompress.pipeline.recipe import parse_assignments
from mmcompress.report.checking import junit_xml
from mmcompress.report.document import GateVerdict

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    return standalone.report([folder]).path


def test_every_gate_passed_ends_with_0(cli: Cli, report: Path) -> None:
    done = cli("check", report, "--max", "p99_ms=5", "--min-speedup", "2", "--max-drop", "i2t_r10=0.05")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == ["ok"] * 3


def test_a_failed_gate_ends_with_1_and_a_table(cli: Cli, report: Path) -> None:
    done = cli("check", report / "report.json", "--max", "p99_ms=5", "--max-drop", "i2t_r10=0.01")
    assert done.code == 1
    first = done.out.splitlines()[1].split()
    assert first[:6] == ["FAIL", "max-drop", "i2t_r10", "int8", "0.038", "0.01"]
    assert done.err.startswith("error: 1 of 2 gates failed: max-drop i2t_r10\nhint: ")


def test_a_drop_inside_its_interval_passes_unless_strict(cli: Cli, report: Path) -> None:
    """R@1 fell by 0.026, its unpaired interval is 0.026 wide to either side."""
    gate = ("check", report, "--max-drop", "i2t_r1=0.01")
    done = cli(*gate)
    assert done.code == 0 and "not significant" in " ".join(done.out.split())
    assert cli(*gate, "--strict").code == 1


def test_json_is_one_document(cli: Cli, report: Path) -> None:
    done = cli("check", report, "--max", "p99_ms=0.1", "--json")
    document = json.loads(done.out)
    assert (done.code, document["passed"], document["gates"][0]["gate"]) == (1, False, "max p99_ms")
    assert set(document["gates"][0]) >= {"gate", "row", "value", "limit", "passed", "significant", "note"}


def test_baseline_and_row(cli: Cli, report: Path) -> None:
    same = ("--baseline", report / "report.json", "--max-drop", "i2t_r10=0", "--min-speedup", "1", "--row", "recovered")
    done = cli("check", report, *same)
    assert done.code == 0 and "against the baseline" in " ".join(done.out.split())


def test_a_recipe_s_gates_are_recorded_and_then_checked(cli: Cli, tmp_path: Path) -> None:
    """The stage records what failed and does not fail; `check` without limits does."""
    make_run(tmp_path)
    made = standalone.report([tmp_path], None, parse_assignments(["gates.max.p99_ms=0.1", "gates.min.top1=0.1"]))
    recorded = json.loads(made.file("report.json").read_text())["gates"]
    assert [(gate["gate"], gate["passed"]) for gate in recorded] == [("max p99_ms", False), ("min top1", True)]
    assert "1 of 2 gates passed." in made.file("report.md").read_text()
    assert ">failed</span>" in made.file("report.html").read_text()
    done = cli("check", made.path)
    assert done.code == 1 and "error: 1 of 2 gates failed: max p99_ms" in done.err


def test_a_recipe_s_gates_on_a_row_that_is_not_there_lose_no_report(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path)
    made = standalone.report([tmp_path], None, parse_assignments(["gates.max.p99_ms=5", 'gates.row="int9"']))
    (recorded,) = json.loads(made.file("report.json").read_text())["gates"]
    assert not recorded["passed"] and "did you mean 'int8'?" in recorded["note"]
    done = cli("check", made.path, "--junit", tmp_path / "out.xml")
    assert done.code == 1 and "the report has no row 'int9'" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        ((), "there is no gate to hold", "--max-drop i2t_r10=0.01"),
        (("--max", "p99=5"), "there is no metric 'p99'; did you mean 'p99_ms'?", "near names: p99_ms"),
        (("--min", "recall=1"), "there is no metric 'recall'", "near names: mean_per_class_recall"),
        (("--max", "int8_against_fp32.r10=1"), "no metric 'int8_against_fp32.r10'", "int8_against_fp32.r10_drop"),
        (("--max", "p99_ms"), "--max 'p99_ms' is not METRIC=NUMBER", "for example: --max i2t_r10=0.01"),
        (("--max-drop", "i2t_r10=x"), "--max-drop 'i2t_r10=x' is not METRIC=NUMBER", "--max-drop"),
        (("--max-drop", "p99_ms=1"), "'p99_ms' does not drop", ""),
        (("--max", "p99_ms=5", "--row", "int9"), "the report has no row 'int9'", "did you mean 'int8'?"),
        (("--min-speedup", "-1"), "min_speedup", "Smallest ratio"),
        (("--max", "p99_ms=5", "--baseline", "nowhere.json"), "there is no report nowhere.json", "give report.json"),
    ],
)
def test_wrong_usage_ends_with_2(cli: Cli, report: Path, arguments: tuple[str, ...], what: str, hint: str) -> None:
    done = cli("check", report, *arguments)
    assert done.code == 2, done.err
    error, _, advice = done.err.partition("\nhint: ")
    assert what in error and hint in advice


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"schema": 1, "rows": [1]}',
        '{"schema": 1, "rows": [{"stage": "a"}]}',
        '{"schema": 2, "rows": []}',
        '{"schema": 1, "rows": [{"stage": "a", "metrics": {"top1": NaN}, "latency": []}]}',
        '{"schema": 1, "rows": [{"stage": "a", "metrics": {"top1": "high"}, "latency": []}]}',
        '{"schema": 1, "rows": [], "ratios": [{"ci95": null}]}',
    ],
)
def test_a_damaged_report_ends_with_4(cli: Cli, tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    done = cli("check", tmp_path, "--min", "top1=0.5")
    assert done.code == 4, done.err
    assert "report.json" in done.err and "hint: write it again: mmcompress report DIR" in done.err


def test_a_flipped_byte_of_a_report_folder_is_found(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path)
    file = standalone.report([tmp_path]).file("report.json")
    file.write_bytes(file.read_bytes().replace(b"0.44", b"0.94", 1))
    done = cli("check", file.parent, "--min", "top1=0.5")
    assert done.code == 4 and "is damaged" in done.err


def test_junit_has_a_case_a_gate(cli: Cli, report: Path, tmp_path: Path) -> None:
    """The elements and attributes of the JUnit schema that GitLab and Jenkins read."""
    out = tmp_path / "ci" / "gates.xml"
    assert cli("check", report, "--max", "p99_ms=0.1", "--min", "top1=0.1", "--junit", out).code == 1
    (suite,) = ElementTree.parse(out).getroot()
    assert (suite.tag, suite.attrib["tests"], suite.attrib["failures"]) == ("testsuite", "2", "1")
    cases = list(suite)
    assert [(case.tag, case.attrib["classname"]) for case in cases] == [("testcase", "mmcompress.int8")] * 2
    (failure,) = cases[0]
    assert failure.tag == "failure" and failure.attrib["message"].startswith("measured 0.68")
    assert cases[1].find("failure") is None


def test_junit_survives_names_that_xml_cannot_hold() -> None:
    verdict = GateVerdict.model_construct(
        gate="max p99_ms", row="a\x00<b>&\ud800", value=None, limit=5.0, passed=False, note="\x0b"
    )
    (suite,) = ElementTree.fromstring(junit_xml([verdict]))
    assert suite[0].attrib["classname"] == "mmcompress.a?<b>&?"
