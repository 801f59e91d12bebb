"""`mmcompress check`: reading a report that somebody hands in, holding it against gates, and telling a CI about it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmcompress.artifact import Artifact
from mmcompress.config import validated
from mmcompress.errors import GateFailedError, UsageError
from mmcompress.formats import compact
from mmcompress.gates import Gates
from mmcompress.manifest import Kind
from mmcompress.places import MANIFEST, writing_file
from mmcompress.report.document import GateVerdict, ReportDocument
from mmcompress.report.enginegates import judged_engine
from mmcompress.report.judging import judged
from mmcompress.report.parts import Engine
from mmcompress.report.rows import engine_of
from mmcompress.strictjson import text_from_json

_AGAIN = "write it again: mmcompress report DIR"


def check(
    report: Path,
    limits: Mapping[str, object],
    baseline: Path | None = None,
    junit: Path | None = None,
    markdown: Path | None = None,
) -> list[GateVerdict]:
    """Judge a report by the given gates, or, where none are given, by those that its recipe recorded; or engines."""
    gates = validated(Gates, limits, "mmcompress check")
    engines = engines_at(report)
    if engines is not None and baseline is not None:
        raise UsageError(f"{report} holds engines, which have no baseline", "leave --baseline out")
    verdicts = _of_report(report, gates, baseline) if engines is None else judged_engine(engines, gates)
    if junit is not None:
        _write_junit(junit, verdicts)
    if markdown is not None:
        with writing_file(markdown):
            markdown.write_text(markdown_table(verdicts), encoding="utf-8")
    return verdicts


def engines_at(path: Path) -> Engine | None:
    """What an artifact of engines says of them; None for anything else."""
    if not (path / MANIFEST).is_file() or (artifact := Artifact.open(path)).manifest.kind is not Kind.ENGINE:
        return None
    return engine_of(artifact, path.parent)


def _of_report(report: Path, gates: Gates, baseline: Path | None) -> list[GateVerdict]:
    document = read_report(report)
    verdicts = judged(document, gates, None if baseline is None else read_report(baseline))
    if not verdicts and baseline is not None:
        raise UsageError(
            f"--baseline {baseline} says what changes are against, and no limit is given",
            "give one, --max-drop 0.01 say; those of the recipe were judged against the first row",
        )
    verdicts = verdicts or list(document.gates)
    if not verdicts:
        raise UsageError(
            f"there is no gate to hold {report} against",
            "give one (--max-drop i2t_r10=0.01, --max p99_ms=5, --min top1=0.6, --min-speedup 2), or write `gates` "
            "into the recipe's report stage",
        )
    return verdicts


def markdown_table(verdicts: Sequence[GateVerdict]) -> str:
    """The verdicts as a table for a job's summary or a merge request; failed ones first."""
    lines = ["| | gate | of | measured | limit | note |", "|---|---|---|---|---|---|"]
    for one in sorted(verdicts, key=lambda verdict: verdict.passed):
        cells = (one.gate, one.row, compact(one.value), compact(one.limit), one.note)
        told = " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        lines.append(f"| {'ok' if one.passed else '**FAIL**'} | {told} |")
    return "\n".join([*lines, ""])


def _write_junit(path: Path, verdicts: Sequence[GateVerdict]) -> None:
    """Over nothing but an earlier JUnit file: `--junit report.json` must not cost the report."""
    if path.exists() and not (path.is_file() and b"<testsuites" in path.read_bytes()[:256]):
        raise UsageError(f"{path} exists and is no JUnit file, so it is not overwritten", "give another --junit")
    with writing_file(path):
        path.write_bytes(junit_xml(verdicts))


def enforce(verdicts: Sequence[GateVerdict]) -> None:
    """Raise GateFailedError, and with it exit code 1, if a gate failed."""
    failed = Counter(verdict.gate for verdict in verdicts if not verdict.passed)
    if failed:
        named = ", ".join(f"{gate} ({times} times)" if times > 1 else gate for gate, times in failed.items())
        raise GateFailedError(
            f"{failed.total()} of {len(verdicts)} gates failed: {named}",
            "the table says what was measured and where; a limit is as good as the test set and the machine behind it",
        )


def read_report(path: Path) -> ReportDocument:
    """A report.json, or the folder with it; a folder of ours is verified byte by byte.

    Raises UsageError for a path without a report, CorruptInputError for a damaged one.
    """
    if (path / MANIFEST).is_file():
        artifact = Artifact.open(path)
        if (kind := artifact.manifest.kind) is not Kind.REPORT:
            raise UsageError(
                f"{path} is an artifact of kind {kind.value!r}", "give a report, or engines as they were built"
            )
        path = artifact.file("report.json")
    elif path.is_dir():
        path = path / "report.json"
    if not path.is_file():
        raise UsageError(f"there is no report {path}", "give report.json or the folder that `mmcompress report` wrote")
    return ReportDocument.read(path, _AGAIN)


def junit_xml(verdicts: Sequence[GateVerdict]) -> bytes:
    """One test case a gate, as GitLab and Jenkins read them."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    counts = {"tests": str(len(verdicts)), "failures": str(len(failed)), "errors": "0", "skipped": "0", "time": "0"}
    suites = ElementTree.Element("testsuites", {"name": "mmcompress check", **counts})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "mmcompress check", **counts})
    for verdict in verdicts:
        name, row = _xml(f"{verdict.gate} {compact(verdict.limit)}"), _xml(verdict.row)
        case = ElementTree.SubElement(suite, "testcase", {"name": name, "classname": f"mmcompress.{row}", "time": "0"})
        told = _xml(f"measured {compact(verdict.value)}, limit {compact(verdict.limit)}. {verdict.note}")
        if verdict.passed:
            ElementTree.SubElement(case, "system-out").text = told
        else:
            failure = ElementTree.SubElement(case, "failure", {"message": told, "type": "GateFailed"})
            failure.text = _xml(text_from_json(verdict.model_dump()))
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold: names come from folders."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
