"""The model card, as huggingface_hub itself reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from report_run import ROWS, graph, make_run

from mmcompress.artifact import Artifact
from mmcompress.card import export_card
from mmcompress.pipeline import standalone
from mmcompress.pipeline.recipe import parse_assignments
from mmcompress.teachers import hub_id

OPTIONS = ('card.license="apache-2.0"', 'card.language=["en","zh"]', "title=t: \"quoted\" <b> 'x' #1")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    return standalone.report([folder], None, parse_assignments(OPTIONS))


def test_metadata_is_what_the_hub_reads(report: Artifact) -> None:
    """ModelCard parses the front matter and rebuilds the model index, and raises for what the hub would refuse."""
    data = ModelCard(report.file("README.md").read_text(encoding="utf-8"), ignore_metadata_errors=False).data
    assert (data.license, data.library_name) == ("apache-2.0", "onnx")
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.base_model == "openai/clip-vit-base-patch32", "the alias that the calibration's config names"
    assert data.language == ["en", "zh"]
    assert {"clip", "onnx", "int8"} <= set(data.tags)
    results = {result.metric_type: result for result in data.eval_results}
    assert results["i2t_recall_at_10"].metric_value == 0.44
    assert results["accuracy"].dataset_name == "demo:test"
    assert data.metrics == list(results)
    assert data.model_name == "t: \"quoted\" <b> 'x' #1", "nothing in a title can break out of the YAML"


def test_card_has_the_figures_of_the_last_row(report: Artifact) -> None:
    text = ModelCard(report.file("README.md").read_text(encoding="utf-8")).text
    for figure in (
        "4,930,113",
        "44.0% | 41.7–46.2 | 47.8%",
        "`image-int8-unsigned.onnx`",
        "0.52 ms",
        "38.4% of the images",
    ):
        assert figure in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_card_of_an_export_says_that_nothing_was_measured() -> None:
    graphs = [graph(tower, "int8", kind) for tower in ("image", "text") for kind in ("signed", "unsigned")]
    sizes = {item.file: 1_500_000 for item in graphs}
    facts = {"params": ROWS["int8"]["params"], "macs": ROWS["int8"]["macs"]}
    card = ModelCard(export_card(graphs, sizes, facts, "/models/own", "int8"), ignore_metadata_errors=False)
    assert card.data.license == "unknown" and card.data.base_model is None and card.data.eval_results is None
    assert "Nothing has been measured yet" in card.text and "1.5 MB" in card.text


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("vit-l14", "openai/clip-vit-large-patch14"),
        ("someone/model", "someone/model"),
        ("open_clip:ViT-B-32/laion2b", None),
        ("models/own.py:teacher", None),
        ("/models/own", None),
        ("demo:teacher", None),
    ],
)
def test_base_model_is_a_hub_id_or_nothing(source: str, name: str | None) -> None:
    assert hub_id(source) == name


def test_a_local_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "own").mkdir(parents=True)
    assert hub_id("models/own") is None
