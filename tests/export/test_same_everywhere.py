"""One teacher everywhere: what is cached, exported and said by transformers, on the same pictures and texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_teachers import embedded_by_transformers, write_small_teacher
from small_tokenizers import FAMILIES, restated

from mmcompress.compress.teacher import load_teacher
from mmcompress.config import BaselineConfig, TeacherConfig
from mmcompress.data.preprocess import normalize, to_array
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.export.baseline import load_model
from mmcompress.pipeline.run import run_stage
from mmcompress.runtime.encoder import Encoder
from mmcompress.stages import STAGES

CPU = torch.device("cpu")
TEXTS = ["a dog", "A Photo of two DOGS, on the Beach!", "", "red\nsnow", "the man stands in water " * 30, "猫 and 😀"]
NOT_EXPORTED = ("altclip",)
"""Families that optimum does not know."""


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(3)
    return [
        Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in ((50, 90), (90, 41), (32, 32))
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_and_export_and_transformers_agree(family: str, tmp_path: Path) -> None:
    if family == "siglip":
        pytest.importorskip("sentencepiece", reason="SigLIP's first tokenizer needs the package sentencepiece")
    folder = write_small_teacher(tmp_path / "teacher", family)
    images, texts = embedded_by_transformers(folder, family, pictures(), TEXTS)
    teacher = load_teacher(TeacherConfig(source=str(folder)), CPU)
    pixels = normalize(np.stack([to_array(i, teacher.preprocessing) for i in pictures()]), teacher.preprocessing)
    torch.testing.assert_close(teacher.encode_image(torch.from_numpy(pixels)), images, atol=2e-5, rtol=0)
    torch.testing.assert_close(teacher.encode_text(TEXTS), texts, atol=2e-5, rtol=0)
    torch.testing.assert_close(teacher.encode_text(TEXTS[:1]), texts[:1], atol=2e-5, rtol=0)
    assert teacher.logit_scale == pytest.approx(np.exp(4.2))
    assert (teacher.logit_bias is None) == (not family.startswith("siglip"))
    if family in NOT_EXPORTED:
        return
    config = BaselineConfig(teacher=TeacherConfig(source=str(folder)))
    exported = run_stage(STAGES["baseline"], config, {}, (), tmp_path / "exported")
    with Encoder.open(exported, "onnxruntime") as encoder:
        np.testing.assert_allclose(encoder.texts(TEXTS), texts.numpy(), atol=2e-5)
        np.testing.assert_allclose(encoder.images(pixels), images.numpy(), atol=2e-5)
        assert encoder.logit_scale == pytest.approx(np.exp(4.2))


def test_a_mask_that_siglip_was_not_trained_with_is_refused(tmp_path: Path) -> None:
    folder = restated(write_small_teacher(tmp_path, "siglip 2"), model_input_names=None)
    with pytest.raises(UsageError, match="gives an attention mask"):
        load_teacher(TeacherConfig(source=str(folder)), CPU)


def test_weights_that_are_cut_off_or_absent_are_no_traceback(tmp_path: Path) -> None:
    folder = write_small_teacher(tmp_path, "clip")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CorruptInputError, match=r"the model in .* cannot be opened") as caught:
        load_model(folder)
    assert "the folder is whole" in caught.value.hint
    weights.unlink()
    with pytest.raises(CorruptInputError, match="has no weights"):
        load_model(folder)
