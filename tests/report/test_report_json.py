"""Reading a report.json: one of schema 1 as mmcompress 0.1 wrote it, and what is refused.

report-schema-1.json was written by the last commit before schema 2, from a part of `report_run.make_run`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_run import make_run

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Kind
from mmcompress.pipeline import standalone
from mmcompress.report.checking import read_report
from mmcompress.report.document import ReportDocument

Cli = Callable[..., Any]
Place = tuple[str | int, ...]
OLD = Path(__file__).parent / "report-schema-1.json"
FREE = {"ci95", "by_backend", "environment", "products", "attention", "modules"}
"""Objects whose keys are data, or left out where there is nothing to say."""


def test_a_report_of_schema_1_says_the_same_in_schema_2(tmp_path: Path) -> None:
    report = read_report(OLD)
    old = json.loads(OLD.read_text(encoding="utf-8"))
    assert [row.row for row in report.rows] == [row["stage"] for row in old["rows"]] == ["teacher", "int8"]
    assert report.rows[1].metrics.i2t_r10 == old["rows"][1]["metrics"]["i2t_r10"]
    assert [engine.name for engine in report.engines] == ["engine-int8"]
    assert report.machines[0].environment.cores == old["environment"]["cores"]
    assert "cores" not in report.environment and report.environment["python"] == old["environment"]["python"]
    (tmp_path / "new.json").write_text(report.to_json(), encoding="utf-8")
    assert json.loads(report.to_json())["schema"] == 2 and read_report(tmp_path / "new.json") == report


def test_a_report_of_schema_1_is_checked_and_compared(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path)
    new = standalone.report([tmp_path]).path
    assert cli("check", OLD, "--max", "p99_ms=5").code == 0
    assert cli("check", OLD).code == 1, "its recipe's gates, one of which failed"
    done = cli("check", new, "--baseline", OLD, "--max-drop", "i2t_r10=0", "--min-speedup", "0.9")
    assert done.code == 0 and "against the baseline" in " ".join(done.out.split())
    compared = cli("compare", OLD, new, "--json")
    assert compared.code == 0 and len(json.loads(compared.out)["comparisons"]) == 8, compared.err


def test_a_report_of_schema_1_from_another_machine_is_joined(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "run")[:5]
    sent = OLD.read_text(encoding="utf-8").replace("AMD EPYC", "Cortex-A78AE")
    parents = {f"{i:02d}-{artifact.path.name}": artifact.digest for i, artifact in enumerate(rows)}
    with Artifact.create(tmp_path / "sent", kind=Kind.REPORT, stage="report", key="k", parents=parents) as draft:
        (draft.path / "report.json").write_text(sent, encoding="utf-8")
    made = read_report(standalone.report([tmp_path / "run", tmp_path / "sent"]).path)
    assert [machine.id for machine in made.machines] == ["AMD EPYC", "Cortex-A78AE"]
    assert [len(row.latency) for row in made.rows] == [8, 4, 4, 4, 8]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"schema": 3}, "is written in schema 3, and this version reads schema 2"),
        ({"schema": "1"}, "is written in schema '1'"),
        ({"schema": None}, "is written in schema None"),
        ({"rows": None}, "rows is None: Input should be a valid"),
        ({"rows": [{"stage": "int8", "metrics": {"top1": 0.7}, "latency": []}]}, "has no 'rows.0.artifact'"),
        ({"rows": [[]]}, "rows.0 is []"),
        ({"steps": [1]}, "steps.0 is 1"),
        ({"x": 1}, "has an unknown key 'x' with the value 1"),
        ({"title": ["t"]}, "title is ['t']"),
    ],
)
def test_what_is_no_report_is_refused_with_its_key(cli: Cli, tmp_path: Path, change: object, what: str) -> None:
    report = json.loads(OLD.read_text(encoding="utf-8"))
    (tmp_path / "report.json").write_text(json.dumps({**report, **dict(change)}))  # type: ignore[call-overload]
    done = cli("check", tmp_path / "report.json", "--min", "top1=0.5")
    assert done.code == 4 and "report.json" in done.err and what in done.err, done.err
    assert "hint: write it again: mmcompress report DIR" in done.err


def places(value: object, place: Place = ()) -> Iterator[Place]:
    """Of every part of a document."""
    if place:
        yield place
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*place, key))


def mutated(text: str, draw: random.Random) -> tuple[str, str, str]:
    """(text with one mistake, its key, what it is); schema 1's `environment` says again what the machines say."""
    report = json.loads(text)
    place = draw.choice([p for p in places(report) if p[0] not in ("schema", "environment")])
    holder = report
    for key in place[:-1]:
        holder = holder[key]
    kinds = ["wrong type"]
    if isinstance(holder[place[-1]], float):
        kinds += ["nan", "infinite"]
    if isinstance(holder, dict) and not FREE & set(place) and place[-1] != "schema":
        kinds += ["missing", "unknown"]
    kind, key = draw.choice(kinds), place[-1]
    if kind == "wrong type":
        holder[key] = 7 if isinstance(holder[key], dict) else {"not": ["expected"]}
    elif kind == "missing":
        del holder[key]
    elif kind == "unknown":
        holder["surprise"], place = 1, (*place[:-1], "surprise")
    else:
        holder[key] = float("nan" if kind == "nan" else "inf")
    return json.dumps(report).replace("Infinity", "1e999"), str(place[-1]), kind


@pytest.mark.parametrize("schema", [1, 2])
def test_two_hundred_mutations_are_refused_with_file_and_key(tmp_path: Path, schema: int) -> None:
    text, draw = OLD.read_text(encoding="utf-8"), random.Random(schema)
    text = text if schema == 1 else ReportDocument.read(OLD).to_json()
    file, tried = tmp_path / "report.json", set()
    for number in range(100):
        damaged, key, kind = mutated(text, draw)
        file.write_text(damaged, encoding="utf-8")
        with pytest.raises(CorruptInputError) as refused:
            read_report(file)
        renamed = {"stage": ("row", "name")}.get(key, (key,))
        assert str(file) in refused.value.what and any(k in refused.value.what for k in renamed), (number, kind, key)
        assert refused.value.exit_code == 4 and "\n" not in refused.value.what
        tried.add(kind)
    assert tried == {"wrong type", "nan", "infinite", "missing", "unknown"}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1', b"7", b'"text"', b"null"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(CorruptInputError, match=r"report\.json"):
        read_report(tmp_path)


def changed(edit: Callable[[Any], None]) -> str:
    report = json.loads(OLD.read_text(encoding="utf-8"))
    edit(report)
    return json.dumps(report)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (
            lambda report: report["rows"][0]["latency"][0].update(p99_ms=-1.0),
            "p99_ms is -1.0: .*a time above 0",
        ),
        (lambda report: report["rows"][0]["metrics"].update(i2t_r10=7.5), "i2t_r10 is 7.5: .*a share from 0 to 1"),
        (lambda report: report["rows"].append(report["rows"][0]), "rows is .*row teacher is there twice"),
    ],
)
def test_figures_that_cannot_be_are_refused(tmp_path: Path, edit: Callable[[Any], None], what: str) -> None:
    (tmp_path / "report.json").write_text(changed(edit), encoding="utf-8")
    with pytest.raises(CorruptInputError, match=what):
        read_report(tmp_path)
