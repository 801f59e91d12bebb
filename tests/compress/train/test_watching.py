"""R@10 while training runs: what is measured, which weights are kept, when training ends, and that a resume agrees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_world import CAPTIONS, write_squares
from shards import picture, write_tar
from torch import Tensor, nn
from toy_training import run
from transformers import CLIPModel

from mmcompress.compress.train.watching import Watch, warn_of_trained
from mmcompress.config import DataConfig, DistillConfig, OptimizerConfig, TeacherConfig, WatchConfig, validated
from mmcompress.data.batches import read
from mmcompress.data.sample import Sample
from mmcompress.errors import UsageError
from mmcompress.measure.retrieval import retrieval
from mmcompress.pipeline.recipe import load_recipe
from mmcompress.pipeline.run import run_recipe
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

CONFIG = OptimizerConfig(epochs=3, batch=8, ema=0.9, save_minutes=1e-9)
SCORES = {3: 0.2, 6: 0.5, 9: 0.4, 12: 0.5, 15: 0.3}
"""R@10 that a run of 15 steps is told, by step."""


class Told:
    """Measures what SCORES say, and remembers the weights that were measured."""

    def __init__(self, keep_best: bool, patience: int | None = None, first: int = 0, grown: float = 0.0) -> None:
        self.keep_best, self.patience, self.grown = keep_best, patience, grown
        self.at = first
        self.seen: dict[int, dict[str, Tensor]] = {}

    def __call__(self, model: nn.Module) -> Watch:
        def measure() -> float:
            self.at += 3
            self.seen[self.at] = {name: value.clone() for name, value in model.state_dict().items()}
            return SCORES[self.at]

        return Watch(measure, 3, self.keep_best, self.patience, grown=self.grown)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_watching_changes_no_weight_and_measures_those_that_the_run_would_end_with(tmp_path: Path) -> None:
    told = Told(keep_best=False)
    watched, plain = run(tmp_path / "watched", CONFIG, watched=told), run(tmp_path / "plain", CONFIG)
    assert same(watched.weights, plain.weights) and same(told.seen[15], plain.weights) and list(told.seen) == [*SCORES]
    assert watched.metrics["best_r10"] == 0.5 and watched.metrics["best_step"] == 6
    assert "best_r10" not in plain.metrics


def test_images_that_are_trained_on_too_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_squares(tmp_path))
    warn_of_trained(data, "demo:val", 100)
    warn_of_trained("-", data, 100)
    assert capsys.readouterr().err == ""
    samples = list(read(data))[:8]
    files = [(f"copy-{n}.{end}", content) for n, one in enumerate(samples) for end, content in of(one).items()]
    more = [
        (f"other-{n}.{end}", content) for n in range(4) for end, content in {"jpg": picture(n), "txt": b"x"}.items()
    ]
    warn_of_trained(data, str(write_tar(tmp_path / "v.tar", [*files, *more])), 10)
    assert "8 of 10 images of" in " ".join(capsys.readouterr().err.split())


def of(sample: Sample) -> dict[str, bytes]:
    return {"png": sample.image, "txt": sample.captions[0].encode()}


def test_the_best_weights_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(keep_best=True)
    assert same(run(tmp_path, CONFIG, watched=told).weights, told.seen[6])
    assert "R@10 30.0% after 15 steps, the best 50.0% after 6" in " ".join(capsys.readouterr().err.split())


def test_training_ends_where_it_rises_no_more(tmp_path: Path) -> None:
    found = run(tmp_path, CONFIG, watched=Told(keep_best=False, patience=2))
    assert found.steps_run == 12 and found.metrics["steps"] == 12


def test_no_patience_is_lost_while_images_or_towers_grow(tmp_path: Path) -> None:
    """9 of 15 steps: of the measurements without a better one only those after 12 and 15 count."""
    assert run(tmp_path / "two", CONFIG, watched=Told(keep_best=False, patience=2, grown=0.6)).steps_run == 15
    assert run(tmp_path / "one", CONFIG, watched=Told(keep_best=False, patience=1, grown=0.6)).steps_run == 12


@pytest.mark.parametrize("stop_after", [4, 7, 11])
def test_a_resumed_run_keeps_the_same_weights(tmp_path: Path, stop_after: int) -> None:
    def interrupted(step: int) -> None:
        if step == stop_after:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole", CONFIG, watched=Told(keep_best=True, patience=2))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", CONFIG, interrupted, watched=Told(keep_best=True, patience=2))
    step = max(int(path.stem[6:]) for path in (tmp_path / "parts").glob("state-*"))
    resumed = run(tmp_path / "parts", CONFIG, watched=Told(keep_best=True, patience=2, first=step // 3 * 3))
    assert same(whole.weights, resumed.weights)
    assert {name: resumed.metrics[name] for name in ("steps", "best_r10", "best_step")} == {
        name: whole.metrics[name] for name in ("steps", "best_r10", "best_step")
    }


RECIPE = """
[data]
train = "{data}"
validation = "{data}"
[student]
source = "vit-t8-64"
image_size = 32
[[stage]]
run = "train"
vocab = 320
context = 16
embed_dim = 32
augment = "none"
growing = 0
deepening = 0
watch = {{ steps = 4, samples = 50, keep_best = true }}
optimizer = {{ epochs = 4, batch = 20, lr = 2e-3, precision = "float32" }}
"""


def test_the_figure_is_that_of_the_checkpoint_by_transformers(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.format(data=write_squares(tmp_path)))
    made = run_recipe(load_recipe(tmp_path / "recipe.toml"), tmp_path / "run")["train"]
    metrics, text = made.manifest.metrics["training"], made.tokenizer
    assert text is not None and metrics["best_step"] in (4, 8, 12)
    model = CLIPModel.from_pretrained(made.path).eval()
    colours = np.array([[32 * (i // 8), 90, 32 * (i % 8)] for i in range(50)], dtype=np.float32)
    pixels = torch.from_numpy(colours / 127.5 - 1)[:, :, None, None].expand(-1, -1, 32, 32)
    tokens = torch.from_numpy(tokenize(load_tokenizer(made.file(text.file)), CAPTIONS[:50], text)).long()
    with torch.no_grad():
        sides = model.get_image_features(pixels), model.get_text_features(tokens)
    images, texts = ((side / side.norm(dim=1, keepdim=True)).numpy() for side in sides)
    shares = retrieval(images, texts, np.arange(50))
    assert metrics["best_r10"] == pytest.approx((shares["i2t_r10"] + shares["t2i_r10"]) / 2, abs=0.011)
    assert metrics["best_r10"] > 0.2


def distilled(**keys: object) -> DistillConfig:
    values = {"teacher": {"source": "vit-l14"}, "data": {"train": "a", "validation": "b"}, **keys}
    return validated(DistillConfig, values, "recipe")


def test_what_would_say_nothing_is_refused_and_idle_pairs_are_in_no_key() -> None:
    with pytest.raises(UsageError, match="keep_best is of measurements, and steps are not given"):
        distilled(watch={"keep_best": True})
    with pytest.raises(UsageError, match=r"watch\.steps needs pairs to measure on: data\.validation"):
        distilled(watch={"steps": 5}, data={"train": "a"})
    assert distilled() == distilled(data={"train": "a"}) == distilled(data=DataConfig(train="a", validation="c"))
    assert distilled(watch=WatchConfig(steps=5)).data.validation == "b"
    teacher = TeacherConfig(source="vit-l14")
    assert DistillConfig(teacher=teacher, data=DataConfig(validation="b")).data.validation is None


def test_distill_watches_by_its_options(
    cli: Callable[..., object], tiny_clip_folder: Path, coloured_squares: Path, tmp_path: Path
) -> None:
    given = ("--teacher", tiny_clip_folder, "--data", coloured_squares, "--student", "inherit:0.5")
    few = ("--optimizer-steps", 4, "--optimizer-batch", 8, "--watch-steps", 2)
    done = cli("distill", *given, *few, "--validation", coloured_squares, "--out", tmp_path / "student")
    assert done.code == 0, done.err  # type: ignore[attr-defined]
    assert "after 2 steps" in done.err and "after 4 steps" in done.err  # type: ignore[attr-defined]
