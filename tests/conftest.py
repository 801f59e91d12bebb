"""Fixtures that tests of several folders share: the command line, and a random CLIP folder with a few pairs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmcompress.places import CACHE

pytest_plugins = ("stand_in_driver", "tiny_checkpoint", "toy_artifact")

WORDS = ("red", "green", "blue", "grey", "square", "of", "colour", "a")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the cache of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `mmcompress ARGUMENTS` in this process, as its entry point does."""
    from mmcompress.cli.main import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mmcompress", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Hugging Face CLIP folder: two blocks of width 64, 32-pixel images, a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel

    vocabulary = {word: index for index, word in enumerate(("<pad>", "<start>", "<unk>", *WORDS, "<end>"))}
    start, end = vocabulary["<start>"], vocabulary["<end>"]
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": start, "eos_token_id": end}
    config = CLIPConfig(
        projection_dim=32,
        vision_config={**tower, "image_size": 32, "patch_size": 8, "projection_dim": 32},
        text_config={
            **tower,
            **ids,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 12,
            "projection_dim": 32,
        },
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unk>"}
    described = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 12}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    processing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    return folder


@pytest.fixture(scope="session")
def coloured_squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a captions.tsv of 32 small images in four colours."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("squares")
    colours = {"red": (200, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 200), "grey": (128, 128, 128)}
    lines = []
    for index in range(32):
        name = list(colours)[index % 4]
        Image.new("RGB", (40, 36), tuple(min(255, c + index) for c in colours[name])).save(folder / f"{index:02d}.png")
        lines.append(f"{index:02d}.png\ta {name} square of colour")
    (folder / "captions.tsv").write_text("\n".join(["image\tcaption", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def better_than_chance() -> Iterator[None]:
    """What INT8 costs is judged of models with random weights too, as of models that answer."""
    from mmcompress.compress.int8 import sensitivity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "above_chance", lambda *_: (1.0, 0.5))
        yield
