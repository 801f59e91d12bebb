"""The rule that is read off an image processor, and our own preprocessing by it, against the processor itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, CLIPConfig

from mmcompress.data.preprocess import normalize, to_array
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.export.pixels import image_processing
from mmcompress.manifest import Preprocessing
from mmcompress.processing import save_preprocessing, save_student_preprocessing

SQUARE = {"height": 40, "width": 40}
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "crop_size": SQUARE}
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "resample": 2}
EXACT: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "clip of version 4.20": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 40, "crop_size": 40},
    "clip, margins": {**CLIP, "size": {"shortest_edge": 46}},
    "clip, crop larger than the image": {**CLIP, "crop_size": {"height": 47, "width": 47}},
    "clip, values": {**CLIP, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]},
    "not normalized": {**CLIP, "do_normalize": False},
    "not rescaled": {**CLIP, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60.0] * 3},
    "neither": {**CLIP, "do_rescale": False, "do_normalize": False},
    "to [0, 2]": {**CLIP, "rescale_factor": 1 / 127.5},
    "squashed": {**CLIP, "size": SQUARE, "do_center_crop": False},
    "squashed and cropped": {**CLIP, "size": {"height": 46, "width": 46}},
    "siglip": SIGLIP,
    "siglip with keys that its class ignores": {**SIGLIP, "do_center_crop": True, "crop_size": 20, "do_pad": True},
    "vit, integer size": {"image_processor_type": "ViTImageProcessor", "size": 40},
    "vit, fast class": {"image_processor_type": "ViTImageProcessorFast", "size": SQUARE},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 46, "width": 46}, "crop_size": SQUARE},
    "bit": {**CLIP, "image_processor_type": "BitImageProcessor"},
    "chinese clip": {**CLIP, "image_processor_type": "ChineseCLIPImageProcessor", "size": SQUARE},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 40}, "crop_pct": 0.875},
    "convnext, large": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    **{f"filter {number}": {**CLIP, "resample": number} for number in range(6)},
}


def folder_with(folder: Path, stated: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(stated))
    return folder


def photos() -> list[Image.Image]:
    draw = np.random.default_rng(7)
    sizes = [(53, 80), (80, 53), (31, 31), (200, 90), (12, 9), (40, 40)]
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def theirs(folder: Path, images: list[Image.Image]) -> np.ndarray[Any, Any]:
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    return np.asarray(processor(images=images, return_tensors="np")["pixel_values"])


def ours(rule: Preprocessing, images: list[Image.Image]) -> np.ndarray[Any, Any]:
    return normalize(np.stack([to_array(image, rule) for image in images]), rule)


@pytest.mark.parametrize("kind", EXACT)
def test_pixels_are_those_of_the_processor(kind: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, EXACT[kind])
    if "feature_extractor_type" in EXACT[kind]:
        CLIPConfig(vision_config={"image_size": 40}).save_pretrained(folder)
    rule, images = image_processing(folder), photos()
    expected = theirs(folder, images)
    np.testing.assert_allclose(ours(rule, images), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", EXACT)
def test_what_is_written_for_a_student_is_read_back(kind: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "teacher", EXACT[kind])
    if "feature_extractor_type" in EXACT[kind]:
        CLIPConfig(vision_config={"image_size": 40}).save_pretrained(folder)
    rule = image_processing(folder)
    same, half = tmp_path / "same", tmp_path / "half"
    same.mkdir()
    half.mkdir()
    save_preprocessing(rule, same)
    assert image_processing(same) == rule
    np.testing.assert_allclose(theirs(same, photos()), ours(rule, photos()), rtol=1e-5, atol=1e-5)
    student = save_student_preprocessing(rule, half, rule.size // 2)
    assert image_processing(half) == student
    assert student.resize / student.size == pytest.approx(rule.resize / rule.size, abs=0.03)
    assert (student.mean, student.interpolation, student.squash) == (rule.mean, rule.interpolation, rule.squash)


def test_both_layouts_of_the_config_are_read(tmp_path: Path) -> None:
    """transformers 5 nests it in processor_config.json."""
    flat = image_processing(folder_with(tmp_path / "flat", SIGLIP))
    stated = {"processor_class": "SiglipProcessor", "image_processor": SIGLIP}
    assert image_processing(folder_with(tmp_path / "nested", stated, "processor_config.json")) == flat
    assert flat.squash and flat.mean == (0.5,) * 3


@pytest.mark.parametrize(
    ("stated", "what"),
    [
        ({**CLIP, "do_resize": False}, "CLIPImageProcessor has do_resize = False, expected true"),
        ({**CLIP, "do_center_crop": False}, "has do_center_crop = False, expected true where size is a shortest_edge"),
        ({**CLIP, "size": {"height": 40, "width": 50}}, "has size = {'height': 40, 'width': 50}, expected"),
        ({**CLIP, "size": {"shortest_edge": True}}, "'shortest_edge': True}, expected a shortest_edge"),
        ({**CLIP, "size": {"shortest_edge": 40, "longest_edge": 50}}, "'longest_edge': 50}, expected a shortest_edge"),
        ({**CLIP, "crop_size": {"height": 40, "width": 50}}, "has crop_size = {'height': 40, 'width': 50}, expected"),
        ({**CLIP, "resample": 9}, "has resample = 9, expected 0 to 5"),
        ({**CLIP, "resample": 7}, "has resample = 7, expected 0 to 5"),  # one of Pillow 13's
        ({**CLIP, "image_mean": [0.5]}, "has image_mean = [0.5], expected a number each for red, green and blue"),
        ({**CLIP, "size": {"shortest_edge": -1}}, "has size = {'shortest_edge': -1}, expected a shortest_edge"),
        ({**CLIP, "crop_size": {"height": -4, "width": -4}}, "has crop_size = {'height': -4, 'width': -4}, expected"),
        ({**CLIP, "size": {"shortest_edge": 100_000}}, "has size = {'shortest_edge': 100000}, expected at most 4096"),
        ({**CLIP, "crop_size": {"height": 9000, "width": 9000}}, "'width': 9000}, expected at most 4096 pixels"),
        ({**CLIP, "rescale_factor": 0}, "has rescale_factor = 0, expected a number above 0"),
        ({**CLIP, "image_mean": ["a", "b", "c"]}, "has image_mean = ['a', 'b', 'c'], expected a number each"),
        ({**CLIP, "image_std": [1, 0, 1]}, "has image_std = [1, 0, 1], expected a number each"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "has max_num_patches = 256, expected images of one shape"),
        ({"image_processor_type": "DonutImageProcessor", "size": SQUARE}, "has do_thumbnail = True, expected no such"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "has do_flip_channel_order = True, expected no such"),
    ],
)
def test_keys_that_a_device_cannot_repeat_are_named(stated: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(what)) as caught:
        image_processing(folder_with(tmp_path, stated))
    assert caught.value.hint


def test_what_a_class_does_beyond_its_keys_is_found_out(tmp_path: Path) -> None:
    """Levit's resizes to 256/224 of what its size says, and nothing but its code says so."""
    levit = {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 40}, "crop_size": SQUARE}
    with pytest.raises(UsageError, match=r"LevitImageProcessor prepares an image of \d+ x \d+ pixels otherwise") as one:
        image_processing(folder_with(tmp_path / "levit", levit))
    assert "of 255 levels" in one.value.what and "CLIPImageProcessor" in one.value.hint
    vilt = {"image_processor_type": "ViltImageProcessor", "size": SQUARE, "do_pad": False}
    with pytest.raises(
        UsageError, match=r"ViltImageProcessor for an image .* failed|ViltImageProcessor makes an image"
    ):
        image_processing(folder_with(tmp_path / "vilt", vilt))


def test_a_processor_and_a_model_of_two_sizes_are_refused(tmp_path: Path) -> None:
    CLIPConfig(vision_config={"image_size": 64}).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="makes images of 40 pixels, and its model takes 64"):
        image_processing(folder_with(tmp_path, CLIP))


def test_a_folder_that_says_nothing_of_its_images_gets_no_default(tmp_path: Path) -> None:
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"there is neither a preprocessor_config\.json nor") as caught:
        image_processing(tmp_path)
    assert "put the model's own one there" in caught.value.hint
    folder_with(tmp_path, {"processor_class": "CLIPProcessor"}, "processor_config.json")
    with pytest.raises(UsageError, match=r"there is neither a preprocessor_config\.json nor"):
        image_processing(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"image_processor_type": "NoSuchProcessor"}'])
def test_a_broken_config_is_no_traceback(text: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CorruptInputError, match=r"the image processor in .* cannot be opened"):
        image_processing(tmp_path)
