"""Fixtures that tests of several folders share: the command line, and a random CLIP folder with a few pairs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmcompress.places import CACHE

pytest_plugins = ("built_wheel", "stand_in_driver", "tiny_checkpoint", "toy_artifact")


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
    from tiny_teacher import write_tiny_teacher

    return write_tiny_teacher(tmp_path_factory.mktemp("tiny-clip"))


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
