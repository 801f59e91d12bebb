"""Any two towers of transformers as a teacher: exact to its own modules, traced to graphs, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, DistilBertConfig, VisionTextDualEncoderModel
from two_towers import write_two_towers

from mmcompress.compress.teacher import load_teacher
from mmcompress.config import TeacherConfig
from mmcompress.errors import MMCompressError, UsageError
from mmcompress.pipeline.converted import becomes_checkpoint, tracing_stage

Cli = Callable[..., Any]
TEXTS = ["a red square", "a photo of the dog and the cat, 23!", "blue"]


@pytest.mark.parametrize("kind", ["vit", "clip", "resnet", "convnext"])
def test_a_teacher_and_its_graphs_are_what_transformers_computes(kind: str, tmp_path: Path, cli: Cli) -> None:
    folder = write_two_towers(tmp_path / kind, kind)
    source = TeacherConfig(source=str(folder))
    teacher, model = (
        load_teacher(source, torch.device("cpu")),
        VisionTextDualEncoderModel.from_pretrained(folder).eval(),
    )
    size = teacher.preprocessing.size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    encoded = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        images = normalize(model.visual_projection(pooled.flatten(1)), dim=-1)
        texts = normalize(model.get_text_features(**encoded), dim=-1)
        if kind in ("vit", "clip"):  # its own forward takes no convolutions
            own = model(pixel_values=pixels, **encoded)
            assert torch.allclose(own.image_embeds, images, atol=1e-6)
    for ours, theirs in ((teacher.encode_image(pixels), images), (teacher.encode_text(TEXTS), texts)):
        assert (ours * theirs).sum(dim=1).min() >= 0.9999
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert teacher.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert not becomes_checkpoint(source) and tracing_stage(str(folder)) == "trace"
    made = cli("export", folder, "--out", tmp_path / "graphs")
    assert made.code == 0, made.err
    session = onnxruntime.InferenceSession(str(tmp_path / "graphs/image-fp32.onnx"))
    (found,) = session.run(None, {"pixels": pixels.numpy()})
    assert np.abs(found - images.numpy()).max() < 1e-4


def test_what_a_folder_lacks_is_said_and_what_suffices_is_taken(tmp_path: Path) -> None:
    folder = write_two_towers(tmp_path / "two", "vit", safe_serialization=False)
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (folder / name).unlink()  # vocab.txt is left, and pytorch_model.bin holds the weights
    assert not (folder / "model.safetensors").exists()
    load_teacher(TeacherConfig(source=str(folder)), torch.device("cpu"))
    for name, said in (
        ("vocab.txt", "has no tokenizer"),
        ("preprocessor_config.json", "does not say how its images are prepared"),
        ("pytorch_model.bin", "has no weights"),
    ):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(MMCompressError, match=said):
            load_teacher(TeacherConfig(source=str(folder)), torch.device("cpu"))
        (folder / name).write_bytes(content)


def test_a_text_tower_that_pools_nothing_is_refused_by_name(tmp_path: Path) -> None:
    text = DistilBertConfig(vocab_size=100, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=24)
    folder = write_two_towers(tmp_path / "two", "vit", text)
    with pytest.raises(MMCompressError, match="distilbert") as refused:
        load_teacher(TeacherConfig(source=str(folder)), torch.device("cpu"))
    assert refused.value.hint


def test_a_tower_without_a_fast_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_two_towers(tmp_path / "two", "vit")
    stated = folder / "tokenizer_config.json"
    stated.write_text(json.dumps({**json.loads(stated.read_text()), "tokenizer_class": "CpmAntTokenizer"}))
    with pytest.raises(MMCompressError, match="tokenizer in"):
        load_teacher(TeacherConfig(source=str(folder)), torch.device("cpu"))


def test_a_tokenizer_that_fills_up_with_its_end_token_is_refused(tmp_path: Path) -> None:
    """A BERT would see an end token that somebody wrote into a text, and no mask of ids can say so."""
    folder = write_two_towers(tmp_path / "two", "vit")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        stated = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**stated, "pad_token": "[SEP]"}))
    with pytest.raises(UsageError, match=r"fills texts up with its end token \(id 3\)"):
        load_teacher(TeacherConfig(source=str(folder)), torch.device("cpu"))
