"""Label embeddings inside the image graph, against the text tower beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmcompress.artifact import Artifact, read_manifest
from mmcompress.config import BankConfig, ExportConfig, validated
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Graph, Manifest
from mmcompress.pipeline.outside import outside
from mmcompress.pipeline.run import run_stage
from mmcompress.runtime.answers import IMAGE_ALONE, classify
from mmcompress.runtime.encoder import Encoder
from mmcompress.stages import STAGES
from mmcompress.strictjson import read_json, write_json

Make = Callable[..., Artifact]
LABELS = ["cat", "dog", "red panda"]


@pytest.fixture
def banked(checkpoint: Make, tmp_path: Path) -> Callable[..., Artifact]:
    def make(**config: Any) -> Artifact:
        (tmp_path / "names.txt").write_text("\n".join(LABELS))
        bank = {"labels": str(tmp_path / "names.txt"), **config.pop("bank", {})}
        built = ExportConfig(bank=BankConfig(**bank), **config)
        return run_stage(STAGES["export"], built, {"checkpoint": checkpoint()}, (), tmp_path / "banked")

    return make


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("image_input", ["prepared", "any"])
def test_the_labels_inside_answer_as_the_text_tower_does(
    banked: Callable[..., Artifact], photo: Path, backend: Any, image_input: str
) -> None:
    made = banked(precisions=("fp32", "int8"), image_input=image_input)
    assert made.manifest.bank is not None and made.manifest.bank.labels == tuple(LABELS)
    for graph in made.manifest.graphs:
        names = [spec.name for spec in graph.outputs]
        assert names == (["embedding", "logits"] if graph.tower == "image" else ["embedding"])
    with Encoder.open(made, backend, "fp32") as whole, Encoder.open(made, backend, "fp32", towers=IMAGE_ALONE) as image:
        separate, inside = dict(classify(whole, photo, LABELS)), dict(classify(image, photo))
        assert inside.keys() == separate.keys()
        np.testing.assert_allclose([inside[n] for n in LABELS], [separate[n] for n in LABELS], atol=1e-5)
    with Encoder.open(made, backend, "int8", towers=IMAGE_ALONE) as image:
        assert sum(share for _, share in classify(image, photo)) == pytest.approx(1)


def test_prompts_are_averaged(banked: Callable[..., Artifact], photo: Path, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("a {c}\nthe {c}.")
    made = banked(bank={"templates": str(tmp_path / "templates.txt")})
    with Encoder.open(made, "onnxruntime") as encoder:
        prompts = encoder.texts(
            [f"{before} {label}{after}" for label in LABELS for before, after in (("a", ""), ("the", "."))]
        )
        means = prompts.reshape(len(LABELS), 2, -1).mean(axis=1)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        wanted = encoder.logit_scale * (means @ encoder.image_files([photo])[0])
        np.testing.assert_allclose(encoder.image_logits(photo), wanted, rtol=1e-3, atol=1e-4)


def test_what_says_nothing_is_refused(checkpoint: Make, tmp_path: Path, photo: Path) -> None:
    with pytest.raises(UsageError, match="templates stand around labels, and none are given"):
        validated(ExportConfig, {"bank": {"templates": "x.txt"}}, "export")
    absent = ExportConfig(bank=BankConfig(labels=str(tmp_path / "absent.txt")))
    with pytest.raises(UsageError, match=r"there is no file .*absent\.txt"):
        run_stage(STAGES["export"], absent, {"checkpoint": checkpoint()}, (), tmp_path / "out")
    plain = run_stage(STAGES["export"], ExportConfig(), {"checkpoint": checkpoint()}, (), tmp_path / "out")
    with Encoder.open(plain, "onnxruntime", towers=IMAGE_ALONE) as encoder:
        with pytest.raises(UsageError, match="has no labels inside") as caught:
            classify(encoder, photo)
        assert "--bank-labels" in caught.value.hint
        with pytest.raises(UsageError, match="stands around labels"):
            classify(encoder, photo, None, "a {}")


def test_earlier_versions_read_what_they_know_and_refuse_the_rest(
    checkpoint: Make, banked: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_stage(STAGES["export"], ExportConfig(), {"checkpoint": checkpoint()}, (), tmp_path / "plain")
    body = read_json(plain.path / "manifest.json", "again")
    assert "bank" not in body and "prepares" not in body["graphs"][0]
    inside = read_json(banked(image_input="any").path / "manifest.json", "again")
    assert inside["bank"]["labels"] == LABELS and inside["graphs"][0]["prepares"] is True
    for model, name in ((Graph, "prepares"), (Manifest, "bank")):
        assert name in model.model_fields and name in model.later
    write_json(tmp_path / "manifest.json", {**body, "of_a_later_version": 1})
    with pytest.raises(CorruptInputError, match="of_a_later_version"):
        read_manifest(tmp_path / "manifest.json")


def test_other_labels_or_texts_are_another_export(tmp_path: Path) -> None:
    names, texts = tmp_path / "names.txt", tmp_path / "texts.txt"
    names.write_text("cat\ndog\n")
    texts.write_text("a cat\n")
    built = ExportConfig(bank=BankConfig(labels=str(names)), trim_vocab=str(texts))
    before = outside(built)
    assert before.keys() == {"bank.labels", "trim_vocab"}
    names.write_text("cat\nbird\n")
    texts.write_text("a bird\n")
    assert all(outside(built)[key] != before[key] for key in before)
