"""What the other stages measured, as the report reads it: documents of bench, drift and bisect, and whose they are.

A report may join several devices. Rows are artifacts and machines are where they ran: every measurement says by the
digests of its parents which artifacts it is of, so a bench folder that is copied back from a device joins the rows that
it ran, and a measurement of other files under the same names is told, never mixed in silently. Accuracy is taken once,
from the first drift, since the delivered files do not change between machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Kind
from mmcompress.strictjson import read_json

Document = dict[str, Any]
_SAME_MACHINE = ("cpu", "gpu", "cores", "memory_bytes", "platform", "power_mode")


def measurements(gathered: Iterable[Artifact], stage: str) -> list[Document]:
    """The documents that a measuring stage wrote, in order, each with its artifact's `name` and its rows' `digests`."""
    found = []
    for artifact in gathered:
        if artifact.manifest.kind is Kind.REPORT and artifact.manifest.stage == stage:
            path = artifact.file(f"{stage}.json")
            document = read_document(path, "rows", f"run {stage} again")
            found.append(
                {"name": artifact.path.name, "folder": artifact.path, "digests": measured(artifact), **document}
            )
    return found


def benches(gathered: Sequence[Artifact]) -> list[Document]:
    """Every bench, and the latencies of finished reports: what a device sends back may be its report alone."""
    reports = [bench for report in measurements(gathered, "report") for bench in _benches_of_report(report)]
    return [*measurements(gathered, "bench"), *reports]


def measured(artifact: Artifact) -> dict[str, str]:
    """Digest of each artifact that a measurement gathered, by its name: the role is `03-recovered`."""
    return {role.partition("-")[2]: digest for role, digest in artifact.manifest.parents.items() if role[:1].isdigit()}


def _benches_of_report(report: Mapping[str, Any]) -> list[Document]:
    """What each machine of a finished report measured."""
    return [
        {
            "name": report["name"],
            "folder": report["folder"],
            "digests": {row["stage"]: row["digest"] for row in report["rows"]},
            "rows": [{"row": row["stage"], "latency": _of(machine, row["latency"])} for row in report["rows"]],
            "ratios": _of(machine, report["ratios"]),
            "ceiling": machine["ceiling"],
            "environment": machine["environment"],
        }
        for machine in report["machines"]
    ]


def _of(machine: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> list[Document]:
    """Entries of a machine, without its id: another report may call it by another one."""
    return [{**entry, "machine": None} for entry in entries if entry["machine"] == machine["id"]]


def read_document(path: Path, rows: str, hint: str) -> Document:
    """The JSON of a measurement, which has a list of objects under `rows`."""
    document = read_json(path, hint)
    listed = document.get(rows) if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise CorruptInputError(f"{path} has no list of {rows}", hint)
    return dict(document)


def machines(documents: Sequence[Document]) -> tuple[list[Document], list[str]]:
    """The machines that measured, each once, and the id of each document's machine.

    The id is the processor's name, with a number behind it where two machines have the same.
    """
    known: list[Document] = []
    ids: list[str] = []
    for document in documents:
        environment = document.get("environment") or {}
        same = {key: environment.get(key) for key in _SAME_MACHINE}
        machine = next((m for m in known if all(m["environment"].get(key) == same[key] for key in same)), None)
        if machine is None:
            name = str(environment.get("gpu") or environment.get("cpu") or "unknown machine")
            namesakes = sum(m["name"] == name for m in known)
            machine = {
                "id": f"{name} ({namesakes + 1})" if namesakes else name,
                "name": name,
                "environment": dict(environment),
                "ceiling": list(document.get("ceiling") or []),
            }
            known.append(machine)
        ids.append(machine["id"])
    return known, ids


def latency_of(row: str, documents: Sequence[Document], ids: Sequence[str]) -> list[Document]:
    """Every latency of a row, with its machine, from all documents."""
    return [
        {**entry, "machine": machine}
        for document, machine in zip(documents, ids, strict=True)
        for entry in named(document, row).get("latency") or []
    ]


def named(document: Mapping[str, Any] | None, row: str) -> Document:
    """The entry of a row, or an empty one."""
    rows = document["rows"] if document else []
    return next((dict(entry) for entry in rows if entry.get("row") == row), {})


def mismatches(artifacts: Sequence[Artifact], documents: Sequence[Document]) -> list[str]:
    """A sentence for each artifact that differs from the one of the same name that was measured or gathered."""
    kept: dict[str, str] = {}
    found = []
    for artifact in artifacts:
        name = artifact.path.name
        if kept.setdefault(name, artifact.digest) != artifact.digest:
            found.append(
                f"{artifact.path} differs from the first {name} ({artifact.digest[:8]}, not {kept[name][:8]}) and is "
                "left out: its latencies may be of another model."
            )
    for document in documents:
        others = [name for name, digest in document["digests"].items() if kept.get(name, digest) != digest]
        if others:
            found.append(f"{document['folder']} measured other files under the same name: {', '.join(others)}.")
    return list(dict.fromkeys(found))


def sensitivity(gathered: Iterable[Artifact]) -> list[Document]:
    """What each quantized checkpoint knows about its modules, worst first."""
    return [
        {"name": artifact.path.name, **{key: artifact.manifest.facts.get(key) for key in ("sensitivity", "budget")}}
        for artifact in gathered
        if artifact.manifest.facts.get("sensitivity")
        and (artifact.manifest.stage == "quantize" or artifact.manifest.facts.get("qat", {}).get("accepted"))
    ]


def bisects(gathered: Iterable[Artifact]) -> list[Document]:
    """The documents of `bisect`."""
    return [
        {"name": artifact.path.name, **read_document(artifact.file("bisect.json"), "modules", "run bisect again")}
        for artifact in gathered
        if artifact.manifest.kind is Kind.REPORT and artifact.manifest.stage == "bisect"
    ]


def verdicts(gathered: Iterable[Artifact]) -> list[Document]:
    """What each verdict measured and recommends."""
    return [
        {"name": artifact.path.name, **read_document(artifact.file("verdict.json"), "rows", "run verdict again")}
        for artifact in gathered
        if artifact.manifest.stage == "verdict"
    ]


def gallery_images(document: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures of a drift document's gallery by file name; those that are not there are left out."""
    folder = Path(document["folder"])
    files = [folder / str(entry.get("file", "")) for entry in document.get("gallery") or []]
    inside = [file for file in files if file.resolve().is_relative_to(folder.resolve()) and file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in inside}
