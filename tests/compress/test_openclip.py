"""open_clip's models: against its own transforms, tokenizer and towers where it is installed, else by a stand-in.

The stand-in has the functions that are called, so that the wiring is tested everywhere: which weights are asked for,
with which activation, and what is refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mmcompress.compress import openclip
from mmcompress.compress.teacher import load_teacher
from mmcompress.config import TeacherConfig
from mmcompress.data.preprocess import normalize, to_array
from mmcompress.errors import CorruptInputError, MissingRequirementError, MMCompressError, UsageError

CPU = torch.device("cpu")
SETTINGS = {"size": (8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}
TAGS = {"openai": {**SETTINGS, "quick_gelu": True}, "laion": dict(SETTINGS)}


class Towers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = torch.nn.Parameter(torch.zeros(5, 16))
        self.logit_scale = torch.nn.Parameter(torch.tensor(100.0).log())
        self.weight = torch.nn.Parameter(torch.randn(192, 16, generator=torch.Generator().manual_seed(0)))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1) @ self.weight

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.randn(1, 16, generator=torch.Generator().manual_seed(int(t))) for t in tokens])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    stand_in, calls = ModuleType("open_clip"), list[dict[str, Any]]()

    def create_model(name: str, **options: Any) -> Towers:
        calls.append({"name": name, **options})
        if options.get("pretrained") == "laion":
            raise RuntimeError("Failed to download")
        return Towers()

    functions = {
        "list_models": lambda: ["ViT-T", "ViT-Q"],
        "list_pretrained_tags_by_model": lambda name: list(TAGS) if name == "ViT-T" else [],
        "get_pretrained_cfg": lambda name, tag: TAGS.get(tag, {}),
        "get_model_preprocess_cfg": lambda model: dict(SETTINGS),
        "create_model": create_model,
        "get_tokenizer": lambda name: lambda texts: torch.tensor([sum(map(ord, text)) for text in texts]),
    }
    for name, function in functions.items():
        setattr(stand_in, name, function)
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    return calls


def load(name: str) -> Any:
    return load_teacher(TeacherConfig(source=f"open_clip:{name}"), CPU)


def test_a_tag_says_which_activation(asked: list[dict[str, Any]]) -> None:
    teacher = load("ViT-T/openai")
    assert asked[0]["quick_gelu"] is True and asked[0]["pretrained"] == "openai" and asked[0]["require_pretrained"]
    assert teacher.embed_dim == 16 and teacher.logit_scale == pytest.approx(100)
    rule = teacher.preprocessing
    assert (rule.size, rule.squash, rule.interpolation, rule.centre) == (8, True, "bilinear", "even")


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("ViT-T", UsageError, "names no weights, so they would be random"),
        ("ViT-T/openia", UsageError, "no weights 'openia' of ViT-T"),
        ("ViT-X/openai", UsageError, "no model 'ViT-X'"),
        ("ViT-T/laion", MissingRequirementError, "Failed to download"),
        ("ViT-T/nowhere.pt", UsageError, "no file of weights nowhere.pt"),
        ("local-dir:nowhere", UsageError, "nowhere has no open_clip_config.json"),
    ],
)
def test_weights_are_never_left_to_chance(
    asked: list[dict[str, Any]], name: str, kind: type[MMCompressError], what: str
) -> None:
    with pytest.raises(kind, match=what):
        load(name)


def test_the_first_tensor_that_is_missing_is_named(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_model(name: str, **_: Any) -> Towers:
        (towers := Towers()).load_state_dict({})
        return towers

    monkeypatch.setattr(sys.modules["open_clip"], "create_model", create_model)
    with pytest.raises(MMCompressError, match=r'Missing key\(s\) in state_dict: "positional_embedding"'):
        load("ViT-T/openai")


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "model.safetensors"])
def test_positions_of_another_size_are_refused_in_a_folder_too(
    asked: list[dict[str, Any]], tmp_path: Path, name: str
) -> None:
    state = dict(Towers().state_dict())
    (tmp_path / "open_clip_config.json").write_text("{}")
    save_file(state, tmp_path / name)
    assert load(f"local-dir:{tmp_path}").embed_dim == 16
    save_file({**state, "positional_embedding": torch.zeros(10, 16)}, tmp_path / name)
    with pytest.raises(CorruptInputError, match=r"'positional_embedding' has shape \(10, 16\), expected \(5, 16\)"):
        load(f"local-dir:{tmp_path}")


def test_random_weights_are_for_those_who_ask(asked: list[dict[str, Any]]) -> None:
    load("ViT-Q/random")
    assert asked == [{"name": "ViT-Q", "pretrained": None, "require_pretrained": False, "pretrained_text": False}]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_positions_of_another_size_are_refused(asked: list[dict[str, Any]], tmp_path: Path, suffix: str) -> None:
    state, file = dict(Towers().state_dict()), tmp_path / f"w{suffix}"
    for length in (5, 10):
        state["positional_embedding"] = torch.zeros(length, 16)
        save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
        if length == 5:
            assert load(f"ViT-Q/{file}").embed_dim == 16 and asked[0]["pretrained"] == str(file)
    with pytest.raises(CorruptInputError, match=r"'positional_embedding' has shape \(10, 16\), expected \(5, 16\)"):
        load(f"ViT-Q/{file}")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"resize_mode": "longest"}, "resize_mode 'longest'"),
        ({"size": (8, 16)}, "not square"),
        ({"interpolation": "nearest"}, "resizes images with interpolation 'nearest', which open_clip's own"),
        ({"size": None}, "reading how open_clip:ViT-T/openai prepares images failed: TypeError"),
        ({"size": 100_000}, r"Preprocessing: size is 100000: Input should be less than or equal to 4096"),
        ({"mean": [0.5] * 4}, r"Preprocessing: mean is \(0\.5, 0\.5, 0\.5, 0\.5\): Tuple should have at most 3 items"),
        ({"std": [0, 1, 1]}, r"Preprocessing: std\.0 is 0: nothing can be divided by 0"),
    ],
)
def test_what_no_device_repeats_is_refused_by_name(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        openclip.preprocessing_from({**SETTINGS, **settings}, "ViT-T/openai")


@pytest.mark.parametrize(("stated", "used"), [("random", "bicubic"), (None, "bicubic"), ("bilinear", "bilinear")])
def test_the_filter_is_the_one_that_open_clip_takes(stated: str | None, used: str) -> None:
    assert openclip.preprocessing_from({**SETTINGS, "interpolation": stated}, "ViT-T/openai").interpolation == used


def test_a_bare_file_is_warned_of(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(dict(Towers().state_dict()), tmp_path / "w.safetensors")
    load(f"ViT-T/{tmp_path}/w.safetensors")
    assert "every released" not in " ".join(capsys.readouterr().err.split())
    for tag in TAGS:
        monkeypatch.setitem(TAGS[tag], "mean", [0.0] * 3)
    load(f"ViT-T/{tmp_path}/w.safetensors")
    assert "every released ViT-T otherwise" in " ".join(capsys.readouterr().err.split())


TEXTS = ["a photo of a dog", "Two DOGS!!", "", "word " * 300, "emoji \U0001f600 猫", "it's\n new"]


@pytest.mark.parametrize(
    ("mode", "interpolation"), [("shortest", "bicubic"), ("shortest", "bilinear"), ("squash", "bicubic")]
)
def test_the_real_one_gives_the_same_pixels_and_embeddings(tmp_path: Path, mode: str, interpolation: str) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    text = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    config = {
        "model_cfg": {
            "embed_dim": 32,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
            "text_cfg": text,
        },
        "preprocess_cfg": {
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2] * 3,
            "interpolation": interpolation,
            "resize_mode": mode,
        },
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config["model_cfg"])
    save_file(dict(model.state_dict()), tmp_path / "open_clip_model.safetensors")
    name = f"local-dir:{tmp_path}"
    reference, _, prepare = open_clip.create_model_and_transforms(name)
    rng = np.random.default_rng(0)
    sizes = ((120, 163), (301, 200), (333, 500), (90, 160), (227, 640), (48, 51))
    images = [
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for size in sizes
    ]
    teacher = load(name)
    pixels = normalize(np.stack([to_array(image, teacher.preprocessing) for image in images]), teacher.preprocessing)
    theirs = torch.stack([prepare(image) for image in images])
    torch.testing.assert_close(torch.from_numpy(pixels), theirs, atol=2e-6, rtol=0)
    with torch.inference_mode():
        expected = (
            reference.eval().encode_image(theirs, normalize=True),
            reference.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True),
        )
    torch.testing.assert_close(teacher.encode_image(torch.from_numpy(pixels)), expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(teacher.encode_text(TEXTS), expected[1], atol=1e-5, rtol=0)
