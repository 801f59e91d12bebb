"""Documents: what was released is read, what is not in the model is refused, and the page about them is fresh."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import ValidationError
from report_run import bench_document, bisect_document, drift_document

from mmcompress import metrics
from mmcompress.document import Document
from mmcompress.errors import CorruptInputError
from mmcompress.export.document import AuditDocument
from mmcompress.manifest import Manifest
from mmcompress.measure.bench.document import BenchDocument
from mmcompress.measure.bisect.document import BisectDocument
from mmcompress.measure.document import Latency
from mmcompress.measure.drift.document import Distance, DriftDocument, Int8Distance, Metrics, Recalls
from mmcompress.measure.split.document import DeviceTimes
from mmcompress.measure.stored import StoredLatencies

RELEASED = Path(__file__).parent / "measure" / "released"
"""Written by mmcompress 0.1.0's demo, shortened; without what `ADDED` names."""
PAGE = Path(__file__).parents[1] / "docs" / "documents.py"
ADDED = re.compile(
    r' "schema": 1,\n| +"(?:collapsed|calibrated_images|phases|gpu_clocks_mhz)": null,\n| "own_answers": false,\n'
    r'|  "quantized": \{\},\n|,\n +"(?:map|classification)": null(?=\n)'
)


@pytest.mark.parametrize(
    ("model", "file"), [(BenchDocument, "bench.json"), (DriftDocument, "drift.json"), (AuditDocument, "audit.json")]
)
def test_what_was_released_is_read_and_written_again_byte_for_byte(model: type[Document], file: str) -> None:
    document = model.read(RELEASED / file)
    assert ADDED.sub("", document.to_json()) == (RELEASED / file).read_text(encoding="utf-8")
    assert model.model_validate_json(document.to_json(), strict=True) == document


@pytest.mark.parametrize(
    ("model", "content"),
    [(BenchDocument, bench_document()), (DriftDocument, drift_document()), (BisectDocument, bisect_document())],
)
def test_the_figures_that_reports_are_tested_with_are_documents(model: type[Document], content: dict[str, Any]) -> None:
    assert model.model_validate_json(json.dumps(content), strict=True)


def entry(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["rows"][0]["latency"][0]
    return found


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: d.update(schema=2), " is written in schema 2, and this version reads schema 1"),
        (lambda d: entry(d).update(p51_ms=1.5), " has an unknown key 'rows.0.latency.0.p51_ms' with the value 1.5"),
        (
            lambda d: entry(d).update(p50_ms=float("nan")),
            ": rows.0.latency.0.p50_ms is nan, and every figure has to be",
        ),
        (
            lambda d: entry(d).update(p50_ms="high"),
            ": rows.0.latency.0.p50_ms is 'high': Input should be a valid number",
        ),
        (lambda d: entry(d).update(p50_ms="4.5"), ": rows.0.latency.0.p50_ms is '4.5': Input should be a valid number"),
        (lambda d: entry(d).update(precision="int4"), ": rows.0.latency.0.precision is 'int4': Input should be 'fp32'"),
        (lambda d: entry(d).pop("rounds_ms"), " has no 'rows.0.latency.0.rounds_ms'"),
        (lambda d: d.pop("environment"), " has no 'environment'"),
    ],
)
def test_a_damaged_file_is_refused_with_its_key_and_value(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], said: str
) -> None:
    content = json.loads((RELEASED / "bench.json").read_text())
    damage(content)
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptInputError, match=re.escape(f"{path}{said}")):
        BenchDocument.read(path)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("p50_ms", (0, -0.0, -1, 1e-320, 86_400_001, 1e308, True, "1", 10**400)),
        ("load_ms", (0, 1e308)),
        ("rounds_ms", ([1.0, -1.0], [1e308])),
        ("throughput_ips", (-5, 1e308)),
        ("batch", (-1, 0, 10**300, 1.5, True)),
        ("threads", (0, -1)),
        ("streams", (0, 1.5)),
        ("samples", (0,)),
        ("peak_bytes", (-1, 2**64)),
        ("cv", (-0.1, 1e308)),
    ],
)
def test_a_number_that_nothing_can_have_measured_is_refused(tmp_path: Path, key: str, values: tuple[Any, ...]) -> None:
    for value in values:
        content = json.loads((RELEASED / "bench.json").read_text())
        entry(content)[key] = value
        (tmp_path / "bench.json").write_text(json.dumps(content))
        with pytest.raises(CorruptInputError, match=rf"bench\.json: rows\.0\.latency\.0\.{key}(\.\d)? is "):
            BenchDocument.read(tmp_path / "bench.json")


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda row: row.update(images=-5), "images"),
        (lambda row: row["metrics"].update(cosine_mean=1e308), "metrics.cosine_mean"),
        (lambda row: row["metrics"].update(margin_mean=1e308), "metrics.margin_mean"),
        (lambda row: row["metrics"]["ci95"].update(i2t_r10=[0.9, 0.1]), "metrics.ci95.i2t_r10"),
        (lambda row: row["metrics"]["r10_change"].update(i2t=1e308), "metrics.r10_change.i2t"),
    ],
)
def test_a_share_a_cosine_and_an_interval_are_within_what_they_can_be(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], key: str
) -> None:
    content = json.loads((RELEASED / "drift.json").read_text())
    edit(content["rows"][1])
    (tmp_path / "drift.json").write_text(json.dumps(content))
    with pytest.raises(CorruptInputError, match=rf"drift\.json: rows\.1\.{re.escape(key)} is "):
        DriftDocument.read(tmp_path / "drift.json")


@pytest.mark.parametrize(
    ("model", "content", "place"),
    [
        (BenchDocument, bench_document(), ("rows",)),
        (BenchDocument, bench_document(), ("rows", 0, "latency")),
        (BenchDocument, bench_document(), ("ratios",)),
        (BenchDocument, bench_document(), ("ceiling",)),
        (StoredLatencies, bench_document(), ("rows",)),
        (StoredLatencies, bench_document(), ("rows", 0, "latency")),
        (DriftDocument, drift_document(), ("rows",)),
        (DriftDocument, drift_document(), ("gallery",)),
        (BisectDocument, bisect_document(), ("modules",)),
        (BisectDocument, bisect_document(), ("blocks",)),
    ],
)
def test_two_entries_that_cannot_both_be_are_refused(
    tmp_path: Path, model: type[Document], content: dict[str, Any], place: tuple[str | int, ...]
) -> None:
    holder: Any = content
    for key in place:
        holder = holder[key]
    path = tmp_path / "document.json"
    path.write_text(json.dumps(content))
    assert model.read(path)
    holder.append(holder[0])
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptInputError, match=r"document\.json: .* is there twice"):
        model.read(path)


def test_a_table_of_split_has_a_time_for_every_cut(tmp_path: Path) -> None:
    times = {"graph": "a", "device": "b", "backend": "openvino", "threads": 1, "behind": [0, 6, 12]}
    for first, second, said in (
        ([1.0, 2.0], [1.0, 2.0, 3.0], "got 3, 2 and 3"),
        ([1.0, 2.0, 3.0], [], "got 3, 3 and 0"),
    ):
        (tmp_path / "times.json").write_text(json.dumps({**times, "first_ms": first, "second_ms": second}))
        with pytest.raises(CorruptInputError, match=rf"times\.json: expected as many .*{said}"):
            DeviceTimes.read(tmp_path / "times.json")


def test_no_zero_is_negative(tmp_path: Path) -> None:
    content = json.loads((RELEASED / "drift.json").read_text())
    content["rows"][1]["metrics"]["i2t_r10"] = -0.0
    (tmp_path / "drift.json").write_text(json.dumps(content))
    assert str(DriftDocument.read(tmp_path / "drift.json").rows[1].metrics.i2t_r10) == "0.0"


def test_a_long_list_of_nothing_takes_neither_time_nor_memory(tmp_path: Path) -> None:
    """Each `{}` lacks every field of a latency: 300 kB of them took 10 s and 3.6 GB."""
    text = json.dumps({**bench_document(), "rows": [{"row": "a", "latency": "@"}]})
    (tmp_path / "bench.json").write_text(text.replace('"@"', f"[{','.join(['{}'] * 100_000)}]"))
    began = time.process_time()
    for model in (BenchDocument, StoredLatencies):
        with pytest.raises(CorruptInputError, match=r"bench\.json has no 'rows\.0\.latency\.0\."):
            model.read(tmp_path / "bench.json")
    assert time.process_time() - began < 2
    with pytest.raises(ValidationError) as caught:
        Manifest.model_validate({"graphs": [{}] * 1000})
    assert len([error for error in caught.value.errors() if error["loc"][0] == "graphs"]) < 10


@pytest.mark.parametrize("text", ["", "{", "\x80", "[]", "null", '{"rows": NaN}'])
def test_what_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bench.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptInputError, match=r"bench\.json") as caught:
        BenchDocument.read(tmp_path / "bench.json", "run bench again")
    assert caught.value.hint == "run bench again"


def test_a_number_that_is_none_is_not_written() -> None:
    document = BenchDocument.read(RELEASED / "bench.json")
    row = document.rows[0]
    damaged = row.model_copy(update={"latency": (row.latency[0].model_copy(update={"cv": float("inf")}),)})
    with pytest.raises(CorruptInputError, match=r"rows\.0\.latency\.0\.cv is inf"):
        document.model_copy(update={"rows": (damaged,)}).to_json()


def plain(annotation: Any) -> set[Any]:
    """The types of a field without their limits."""
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in plain(part)}
    return {get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation}


def test_the_names_of_metrics_are_those_of_the_fields() -> None:
    beside = {"r10_change", "old_index", "ci95"}
    assert set(metrics.METRICS) == set(Metrics.model_fields) - beside
    assert set(metrics.RECALLS) == set(Recalls.model_fields)
    assert set(metrics.INT8_METRICS) == set(Int8Distance.model_fields) - {"row"}
    assert set(Distance.model_fields) < set(Metrics.model_fields)
    numbers = {name for name, field in Latency.model_fields.items() if plain(field.annotation) <= {float, type(None)}}
    assert set(metrics.LATENCY) == numbers | {"peak_bytes", "device_peak_bytes"}
    assert set(metrics.SPEEDS) < set(metrics.LATENCY) and set(metrics.LOWER_IS_BETTER) < set(metrics.METRICS)


def script() -> Any:
    spec = importlib.util.spec_from_file_location("documents_page", PAGE)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_page_about_documents_is_fresh_and_every_field_is_explained() -> None:
    documents = script()
    assert documents.page() == PAGE.with_suffix(".md").read_text(encoding="utf-8"), "run `make docs`"
    described: dict[str, type] = {}
    for file, model in documents.models().items():
        for part in (model, *documents.parts(model)):
            assert part.__doc__, part
            assert part.model_config["frozen"] and described.setdefault(part.__name__, part) is part
            silent = [name for name, field in part.model_fields.items() if not field.description]
            assert silent == [], f"{file}: {part.__name__}"
