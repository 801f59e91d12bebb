"""`check` judges engines: sizes, kernels and fall-backs, of an artifact by itself and in a report."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from mmcompress.artifact import Artifact
from mmcompress.errors import GateFailedError, UsageError
from mmcompress.gates import Gates
from mmcompress.manifest import Graph, Kind, TensorSpec
from mmcompress.report.checking import check, enforce, engines_at, markdown_table
from mmcompress.report.enginegates import engine_verdicts, judged_engine

FILES = {"image-int8-sm86.engine": (115, []), "text-int8-sm86.engine": (119, ["text.blocks.0.out"])}


def engines(folder: Path) -> Path:
    with Artifact.create(folder, kind=Kind.ENGINE, stage="build", key="k") as draft:
        audits: dict[str, Any] = {}
        for file, (kernels, fallen) in FILES.items():
            (draft.path / file).write_bytes(b"plan" * len(file))
            spec = TensorSpec(name="x", shape=(None, 4), dtype="float32")
            tower: Any = file.partition("-")[0]
            draft.graphs.append(
                Graph(file=file, tower=tower, precision="int8", target="sm86", inputs=(spec,), outputs=(spec,))
            )
            audits[file] = {
                "layers": kernels,
                "products": {"int8": 49},
                "attention": {},
                "weights_bytes": None,
                "modules": {"int8": 48},
                "not_int8": fallen,
            }
        draft.facts = {
            "backend": "tensorrt-rtx",
            "tensorrt_version": "1.7.1",
            "batches": [1, 8, 32],
            "audit": audits,
        }
    return folder


def test_every_file_is_held_against_every_limit(tmp_path: Path) -> None:
    found = check(engines(tmp_path / "engines"), {"max": {"kernels": 117, "engine_bytes": 1000}})
    told = {(verdict.gate, verdict.row): (verdict.value, verdict.passed) for verdict in found}
    assert told == {
        ("max fallbacks", "image-int8-sm86.engine"): (0, True),
        ("max fallbacks", "text-int8-sm86.engine"): (1, False),
        ("max kernels", "image-int8-sm86.engine"): (115, True),
        ("max kernels", "text-int8-sm86.engine"): (119, False),
        ("max engine_bytes", "image-int8-sm86.engine"): (88, True),
        ("max engine_bytes", "text-int8-sm86.engine"): (84, True),
    }
    (fallen,) = (verdict for verdict in found if verdict.gate == "max fallbacks" and not verdict.passed)
    assert fallen.note == "text, int8, sm86, tensorrt-rtx 1.7.1: text.blocks.0.out"


def test_a_limit_that_several_files_miss_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(GateFailedError, match=r"^3 of 4 gates failed: max fallbacks, max kernels \(2 times\)$"):
        enforce(check(engines(tmp_path / "e"), {"max": {"kernels": 100}}))


def test_fallbacks_are_judged_without_being_asked(tmp_path: Path) -> None:
    assert [v.gate for v in check(engines(tmp_path / "e"), {})] == ["max fallbacks"] * 2


def test_an_engine_without_an_audit_fails(tmp_path: Path) -> None:
    engine = engines_at(engines(tmp_path / "e"))
    assert engine is not None
    bare = engine.model_copy(update={"files": (engine.files[0].model_copy(update={"audit": None}),)})
    (verdict,) = engine_verdicts([bare], {"kernels": 117})
    assert not verdict.passed and verdict.value is None and verdict.note.startswith("not measured; image, int8")
    (verdict,) = engine_verdicts([], {"kernels": 117})
    assert not verdict.passed and verdict.note == "not measured; there are no engines"


@pytest.mark.parametrize("limits", [{"max": {"p99_ms": 5}}, {"min_speedup": 2}, {"max_drop": {"i2t_r10": 0.01}}])
def test_what_engines_do_not_have_is_refused(limits: dict[str, Any], tmp_path: Path) -> None:
    engine = engines_at(engines(tmp_path / "e"))
    assert engine is not None
    with pytest.raises(UsageError, match="e holds engines, of which there is no"):
        judged_engine(engine, Gates.model_validate(limits))


@pytest.mark.parametrize("chosen", [{"row": "int8"}, {"backend": "openvino"}, {"batch": 8}])
def test_what_chooses_a_part_of_a_report_is_refused(chosen: dict[str, Any], tmp_path: Path) -> None:
    engine = engines_at(engines(tmp_path / "e"))
    assert engine is not None
    with pytest.raises(UsageError, match=f"{next(iter(chosen))} chooses a part of a report"):
        judged_engine(engine, Gates.model_validate({"max": {"kernels": 200}, **chosen}))


def test_only_upper_limits() -> None:
    with pytest.raises(ValueError, match="'kernels' is better when lower: give a limit with max"):
        Gates.model_validate({"min": {"kernels": 3}})


def test_junit_and_markdown_are_written(tmp_path: Path) -> None:
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    found = check(engines(tmp_path / "e"), {"max": {"kernels": 117}}, junit=junit, markdown=summary)
    assert ElementTree.parse(junit).getroot().attrib["failures"] == "2"
    lines = summary.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(found) and lines[2].startswith(
        "| **FAIL** | max fallbacks | text-int8-sm86.engine | 1 | 0 |"
    )
    assert "\\|" in markdown_table([found[0].model_copy(update={"note": "a|b"})])
