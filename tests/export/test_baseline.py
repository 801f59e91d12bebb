"""The baseline stage: optimum's own export of a teacher, cut in two and otherwise untouched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from small_tokenizers import restated
from tiny_clip import CONTEXT, EOS, VOCAB, clip_of, config_of, write_tokenizer
from torch.nn.functional import normalize
from transformers import ChineseCLIPConfig, ChineseCLIPModel, SiglipConfig, SiglipModel

from mmcompress.artifact import Artifact
from mmcompress.config import BaselineConfig, TeacherConfig
from mmcompress.errors import CorruptInputError, GateFailedError, UsageError
from mmcompress.export import baseline as stage
from mmcompress.families import config_from_hugging_face
from mmcompress.packaged import packaged
from mmcompress.pipeline.run import run_stage
from mmcompress.stages import STAGES


def teacher_folder(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    write_tokenizer(folder)
    if model.config.model_type == "siglip":
        restated(folder, model_input_names=["input_ids"])
    stated = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**stated, "crop_size": 32, "image_std": [0.5] * 3}))
    return folder


def made(folder: Path, out: Path, trusted: bool = False) -> Artifact:
    teacher = TeacherConfig(source=str(folder), trust_remote_code=trusted)
    return run_stage(STAGES["baseline"], BaselineConfig(teacher=teacher), {}, (), out)


def run(artifact: Artifact, tower: str, first: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None = None) -> Any:
    graph = next(graph for graph in artifact.manifest.graphs if graph.tower == tower)
    feeds = {graph.inputs[0].name: first}
    if len(graph.inputs) > 1:
        assert graph.inputs[1].name == "attention_mask" and mask is not None
        feeds["attention_mask"] = mask
    path = str(artifact.file(graph.file))
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def test_a_clip_teacher_becomes_two_graphs_that_match_transformers(tmp_path: Path) -> None:
    config = config_of()
    model = clip_of(config)
    folder = teacher_folder(tmp_path / "teacher", model)
    artifact = made(folder, tmp_path / "baseline")
    image, text = artifact.manifest.graphs
    assert (image.tower, image.precision, image.inputs[0].shape) == ("image", "fp32", (None, 3, 32, 32))
    assert (text.inputs[0].name, text.inputs[0].shape) == ("input_ids", (None, CONTEXT))
    assert artifact.manifest.facts["params"] == config.params and artifact.manifest.facts["macs"] == config.macs
    assert artifact.manifest.facts["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-3)
    assert artifact.tokenizer is not None and artifact.tokenizer.eos_token_id == EOS
    for batch in (1, 3, 8):
        pixels = np.random.default_rng(batch).standard_normal((batch, 3, 32, 32), dtype=np.float32)
        ids = np.random.default_rng(batch).integers(3, 50, (batch, CONTEXT))
        ids[:, 7], ids[:, 8:] = EOS, 51
        with torch.inference_mode():
            expected_image = normalize(model.get_image_features(torch.from_numpy(pixels)), dim=-1).numpy()
            expected_text = normalize(model.get_text_features(torch.from_numpy(ids)), dim=-1).numpy()
        np.testing.assert_allclose(run(artifact, "image", pixels), expected_image, atol=1e-5)
        mask = (np.arange(CONTEXT) < 8).astype(np.int64)[None].repeat(batch, 0)
        np.testing.assert_allclose(run(artifact, "text", ids, mask), expected_text, atol=1e-5)


def test_two_exports_have_one_digest(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "teacher", clip_of(config_of()))
    first, second = (made(folder, tmp_path / side / "baseline") for side in "ab")
    assert first.manifest.files == second.manifest.files and first.digest == second.digest


def small_siglip() -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "projection_size": 32}
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8}))


def small_chinese_clip() -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    return ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


@pytest.mark.parametrize("family", [small_siglip, small_chinese_clip])
def test_other_families_are_exported_and_checked_too(family: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = family().eval()
    if (bias := getattr(model, "logit_bias", None)) is not None:
        torch.nn.init.constant_(bias, -12.25)
    artifact = made(teacher_folder(tmp_path / "teacher", model), tmp_path / "baseline")
    assert [graph.tower for graph in artifact.manifest.graphs] == ["image", "text"]
    assert artifact.manifest.facts["macs"] == config_from_hugging_face(tmp_path / "teacher").macs
    assert artifact.manifest.facts["params"] == sum(p.numel() for p in model.parameters())
    assert artifact.manifest.facts["logit_bias"] == (-12.25 if family is small_siglip else None)
    assert max(artifact.manifest.metrics["against_transformers"].values()) < 1e-5


def test_random_and_constant_teachers_are_told_as_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = clip_of(config_of())
    made(teacher_folder(tmp_path / "random", model), tmp_path / "a")
    assert "teacher" in (said := " ".join(capsys.readouterr().err.split())) and "is no better than chance" in said
    torch.nn.init.zeros_(model.vision_model.embeddings.patch_embedding.weight)
    made(teacher_folder(tmp_path / "constant", model), tmp_path / "b")
    assert "the image tower gives the same answer to everything" in " ".join(capsys.readouterr().err.split())


def test_a_teacher_that_knows_the_drawings_is_not_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(Path(packaged("demo:teacher")), tmp_path / "baseline")
    assert "chance" not in capsys.readouterr().err


def test_a_graph_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = teacher_folder(tmp_path / "teacher", clip_of(config_of()))
    other = stage.exported_by_optimum(clip_of(config_of(), seed=1), CONTEXT)
    monkeypatch.setattr(stage, "exported_by_optimum", lambda *_: other)
    with pytest.raises(GateFailedError, match=r"optimum's image-fp32\.onnx differs from the teacher's"):
        made(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(stage, "difference", lambda *_: float("nan"))
    with pytest.raises(CorruptInputError, match=r"what image embeddings differ by is nan"):
        made(folder, tmp_path / "out")


@pytest.mark.parametrize(("tower", "inputs"), [("image", "pixel_values"), ("text", "input_ids, attention_mask=None")])
def test_a_graph_is_held_against_the_functions_that_the_cache_is_made_with(
    tmp_path: Path, tower: str, inputs: str
) -> None:
    """Code of the folder's own that changes one of them and leaves forward() as it is, which optimum exports."""
    folder = teacher_folder(tmp_path / "teacher", clip_of(config_of()))
    names = inputs.replace("=None", "")
    (folder / "mod.py").write_text(
        "from transformers import CLIPModel\n"
        "class M(CLIPModel):\n"
        f"    def get_{tower}_features(self, {inputs}):\n"
        f"        return super().get_{tower}_features({names}).flip(-1)\n"
    )
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "auto_map": {"AutoModel": "mod.M"}}))
    with pytest.raises(GateFailedError, match=rf"{tower}-fp32\.onnx differs from the teacher's get_{tower}_") as caught:
        made(folder, tmp_path / "out", trusted=True)
    assert "file.py:function" in caught.value.hint and not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["open_clip:ViT-B-32/openai", "mine.py:teacher"])
def test_teachers_that_optimum_cannot_know_are_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="optimum cannot export the teacher") as caught:
        config = BaselineConfig(teacher=TeacherConfig(source=source))
        stage.baseline(type("Job", (), {"config": config})())  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_a_model_that_embeds_no_images_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, vocab_size=VOCAB)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match=r"BertModel\) does not embed both images and texts"):
        stage.load_model(tmp_path / "bert")
