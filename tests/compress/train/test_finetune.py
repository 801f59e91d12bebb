"""Fine-tuning: rates by layer, the line to the start, what is chosen on it, and a checkpoint that transformers opens.

References: the papers' formulas written out, plain torch, and transformers' own class on what was written.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_world import write_squares, write_teacher
from PIL import Image
from safetensors.torch import load_file
from small_model import small_model
from torch import nn
from torchrun import torchrun
from toy_training import HERE, network, run, stream
from transformers import CLIPModel

from mmcompress.artifact import Artifact
from mmcompress.compress.train import finetune
from mmcompress.compress.train.interpolation import Point, chosen, interpolate, line
from mmcompress.compress.train.judging import Classes, check_told_apart, class_embeddings, classes_of
from mmcompress.compress.train.layerwise import layer_scales
from mmcompress.compress.train.optimize import optimize
from mmcompress.config import OptimizerConfig
from mmcompress.data.batches import read
from mmcompress.errors import UsageError
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.pipeline import standalone
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

Cli = Callable[..., Any]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
FEW = {"optimizer.epochs": 5, "optimizer.batch": 16, "optimizer.lr": 2e-3, "augment": "none"}


def write_classes(folder: Path, of: int = 40) -> Path:
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(of):
            drawn = random.Random(f"{name}{number}")
            shade = tuple(min(255, max(0, value + drawn.randint(-60, 60))) for value in colour)
            Image.new("RGB", (40, 36), shade).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("world") / "teacher")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Artifact:
    return standalone.convert(str(teacher), tmp_path_factory.mktemp("start") / "start")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, start: Artifact, classes: Path, pairs: Path) -> Artifact:
    given = {"data.train": str(classes), "data.original": str(pairs), **FEW}
    return standalone.finetune(start.path, tmp_path_factory.mktemp("tuned") / "tuned", given)


def test_rates_fall_by_layer_as_beit_counts_them() -> None:
    model = small_model(blocks=3)
    scales = layer_scales([name for name, _ in model.named_parameters()], model.config, 0.5)
    assert scales["image.blocks.2.fc1.weight"] == 0.5 and scales["image.blocks.0.qkv.bias"] == 0.125
    assert {scales[f"image.{name}"] for name in ("class_token", "patch.weight", "positions", "norm_pre.bias")} == {
        1 / 16
    }
    assert scales["text.tokens.weight"] == scales["text.positions"] == 1 / 16
    assert scales["image.projection.weight"] == scales["image.norm_post.weight"] == scales["logit_scale"] == 1
    assert set(layer_scales(scales, model.config, 1.0).values()) == {1.0}


def test_a_factor_is_one_on_the_learning_rate_of_its_parameter(tmp_path: Path) -> None:
    """One step of AdamW without decay moves each weight by lr g / (|g| + eps): by the rate, whatever the gradient."""
    torch.manual_seed(0)
    trained = nn.Linear(4, 4)
    before = {name: p.detach().clone() for name, p in trained.named_parameters()}
    config = OptimizerConfig(steps=1, batch=8, lr=0.01, weight_decay=0, clip=1e9, precision="float32")
    optimize(
        trained,
        lambda batch, _: nn.functional.mse_loss(trained(batch.values), torch.ones(8, 4)),
        stream,
        config=config,
        pairs=40,
        world=HERE,
        work=tmp_path,
        what="test",
        scales={"weight": 0.25},
    )
    moved = {name: (p.detach() - before[name]).abs() for name, p in trained.named_parameters()}
    assert torch.allclose(moved["bias"], torch.tensor(0.01), rtol=0.02)
    assert torch.allclose(moved["weight"], torch.tensor(0.0025), rtol=0.02)


def test_without_factors_training_is_what_it_was(tmp_path: Path) -> None:
    """The groups of AdamW change nothing that it computes: torch's own loop ends with the same weights."""
    config = OptimizerConfig(epochs=2, batch=8, precision="float32", weight_decay=0.1)
    ours, theirs = run(tmp_path, config).weights, network()
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    for step, batch in enumerate([*stream(0, 0), *stream(1, 0)]):
        optimizer.zero_grad()
        nn.functional.mse_loss(theirs(batch.values), batch.values).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        rate = 1e-3 if step == 0 else 1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 9))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    assert all(torch.allclose(ours[name], p, atol=1e-6) for name, p in theirs.named_parameters())


def test_the_line_goes_from_end_to_end_and_the_rule_takes_the_largest_sum() -> None:
    start, tuned = {"w": torch.tensor([1.0, 0.1])}, {"w": torch.tensor([3.0, 0.3])}
    target = {"w": torch.zeros(2)}
    seen: list[list[float]] = []

    def put(alpha: float) -> None:
        interpolate(target, start, tuned, alpha)
        seen.append(target["w"].tolist())

    points = line(put, lambda: float(target["w"][0]), None)
    assert torch.equal(torch.tensor(seen[0]), start["w"]) and torch.equal(torch.tensor(seen[-1]), tuned["w"])
    assert seen[5] == pytest.approx([0.5 * 1 + 0.5 * 3, 0.5 * 0.1 + 0.5 * 0.3])
    assert [point.alpha for point in points] == pytest.approx([0.1 * step for step in range(11)])
    assert chosen(points).alpha == 1 and all(point.original is None for point in points)
    traded = [Point(alpha=a, validation=v, original=o) for a, v, o in ((0, 0.2, 0.9), (0.5, 0.7, 0.8), (1, 0.8, 0.3))]
    assert chosen(traded).alpha == 0.5
    equal = [Point(alpha=a, validation=v, original=o) for a, v, o in ((1, 0.5, 0.5), (0.3, 0.4, 0.6))]
    assert chosen(equal).alpha == 0.3
    assert [chosen(traded, limit).alpha for limit in (0, 0.05, 0.1, 0.6)] == [0, 0, 0.5, 1]
    gained = [Point(alpha=a, validation=v, original=o) for a, v, o in ((0, 0.2, 0.5), (0.5, 0.7, 0.6), (1, 0.7, 0.6))]
    assert chosen(gained, 0).alpha == 0.5
    assert [p.alpha for p in line(put, lambda: 0.0, None, fixed=0.35)] == [0.0, 0.35, 1.0]


def test_a_class_is_the_normalized_mean_of_its_prompts(start: Artifact, classes: Path) -> None:
    model, text = CLIPModel.from_pretrained(start.path).eval(), start.tokenizer
    assert text is not None
    found = Classes(("red", "blue"), ("a square of {c}", "{c} and blue"))
    ours = class_embeddings(dual_encoder_from_checkpoint(start.path, start.model), start, found, 2, torch.device("cpu"))
    words = ["a square of red", "red and blue", "a square of blue", "blue and blue"]
    tokens = torch.from_numpy(tokenize(load_tokenizer(start.file(text.file)), words, text)).long()
    with torch.no_grad():
        theirs = nn.functional.normalize(model.get_text_features(tokens), dim=-1).unflatten(0, (2, 2)).mean(1)
    assert torch.allclose(ours, nn.functional.normalize(theirs, dim=-1), atol=1e-5)
    assert classes_of(str(classes)) == Classes(("blue", "green", "red"), ("{}",))


def test_by_labels_the_image_tower_learns_and_the_result_is_measured_by_transformers(
    tuned: Artifact, start: Artifact, classes: Path
) -> None:
    found = tuned.manifest.metrics["interpolation"]
    by_alpha = {point["alpha"]: point for point in found["points"]}
    assert found["figures"] == {"validation": "top1", "original": "r10"} and len(by_alpha) == 11
    best = max(point["validation"] + point["original"] for point in found["points"])
    assert by_alpha[found["alpha"]]["validation"] + by_alpha[found["alpha"]]["original"] == best
    assert by_alpha[0.0]["validation"] < 0.6 < by_alpha[1.0]["validation"]
    before, after = load_file(start.file("model.safetensors")), load_file(tuned.file("model.safetensors"))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("vision_model", "visual_projection")) for name in changed)
    model, text = CLIPModel.from_pretrained(tuned.path).eval(), tuned.tokenizer
    assert text is not None
    tokens = torch.from_numpy(tokenize(load_tokenizer(tuned.file(text.file)), sorted(COLOURS), text)).long()
    right = []
    for sample in read(f"part:0-0/10:{classes}", announce=False):
        with Image.open(io.BytesIO(sample.image)) as image:
            pixels = np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.float32) / 127.5 - 1
        with torch.no_grad():
            answer = model(input_ids=tokens, pixel_values=torch.from_numpy(pixels).permute(2, 0, 1)[None])
        right.append(sorted(COLOURS)[int(answer.logits_per_image.argmax())] == sample.label)
    assert by_alpha[found["alpha"]]["validation"] == pytest.approx(np.mean(right))


def test_the_result_is_the_mix_of_the_start_and_of_what_alpha_1_writes(
    tuned: Artifact, start: Artifact, classes: Path, tmp_path: Path
) -> None:
    whole = standalone.finetune(start.path, tmp_path / "whole", {"data.train": str(classes), "alpha": 1, **FEW})
    ends = [load_file(artifact.file("model.safetensors")) for artifact in (start, whole)]
    alpha, found = tuned.manifest.metrics["interpolation"]["alpha"], load_file(tuned.file("model.safetensors"))
    assert all(torch.allclose(x, (1 - alpha) * ends[0][n] + alpha * ends[1][n], atol=1e-6) for n, x in found.items())


def test_a_run_that_was_killed_after_training_goes_on_to_the_same_weights(
    tuned: Artifact, start: Artifact, classes: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    given = {"data.train": str(classes), "data.original": str(pairs), "optimizer.save_minutes": 1e-9, **FEW}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "line", killed)
        standalone.finetune(start.path, tmp_path / "out", given)
    assert not (tmp_path / "out").exists() and list((tmp_path / ".out.work").glob("state-*"))
    again = standalone.finetune(start.path, tmp_path / "out", given)
    ours, theirs = (load_file(artifact.file("model.safetensors")) for artifact in (again, tuned))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_sparse_model_stays_sparse(start: Artifact, teacher: Path, classes: Path, tmp_path: Path) -> None:
    sparse = {"sparsity": "2:4", "heads": 1, "mlp": 1, "batch": 16, "data.train": str(classes)}
    pruned = standalone.prune(start.path, tmp_path / "sparse", {**sparse, "teacher.source": str(teacher)})
    made = standalone.finetune(pruned.path, tmp_path / "out", {"data.train": str(classes), **FEW})
    before, after = (load_file(artifact.file("model.safetensors")) for artifact in (pruned, made))
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(before[name], after[name]) and torch.equal(before[name] == 0, after[name] == 0)
    assert made.manifest.facts["two_four"] == pruned.manifest.facts["two_four"]


def test_the_command_converts_a_teacher_and_its_result_goes_on_like_any_checkpoint(
    cli: Cli, tmp_path: Path, teacher: Path, pairs: Path
) -> None:
    few = ("--optimizer-steps", 2, "--optimizer-batch", 8, "--validation", pairs, "--text", "keep")
    made = cli("finetune", teacher, "--data", pairs, "--out", tmp_path / "t", *few, "--json")
    assert made.code == 0, made.err
    document = json.loads(made.out.splitlines()[-1])
    assert document["stage"] == "finetune" and (tmp_path / "t-checkpoint" / "manifest.json").is_file()
    assert document["metrics"]["interpolation"]["figures"] == {"validation": "r10", "original": None}
    assert "validation data: R@10" not in made.err and "60 of 60 images of" in " ".join(made.err.split())
    again = cli("finetune", teacher, "--data", pairs, "--out", tmp_path / "t", *few)
    assert "reused" in again.err and "taken" in again.out and "give --original DATA" in again.out
    quantized = cli(
        "quantize", tmp_path / "t", "--data", pairs, "--out", tmp_path / "q", "--samples", 32, "--batch", 16
    )
    assert quantized.code == 0, quantized.err
    assert cli("export", tmp_path / "q", "--out", tmp_path / "int8").code == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"by": "labels", "data.train": "PAIRS"}, "has captions, not classes"),
        ({"by": "labels", "text": "train"}, "keeps the text tower"),
        ({"text": "train"}, "the text tower is kept; text is train"),
        ({"data.train": "part:0-4/10:CLASSES"}, "is a part already, so no tenth"),
        ({"optimizer.batch": 1000}, "a batch of 1000 pairs was asked for"),
        ({"by": "captions", "data.labels": "demo:names"}, "is of classes, and by is captions"),
        ({"data.labels": "demo:names"}, "are of none of the"),
        ({"data.validation": "PAIRS"}, "is of one of the 3 classes"),
        ({"alpha": 1.5}, "alpha is 1.5: Input should be less than or equal to 1"),
        ({"data.original": "nowhere"}, "there is no nowhere"),
        ({"max_drop": 0.01}, "data.original is not given"),
        ({"max_drop": 0.01, "data.original": "CLASSES", "alpha": 0.5}, "alpha and max_drop exclude each other"),
    ],
)
def test_what_cannot_work_is_refused(
    given: dict[str, Any], said: str, start: Artifact, classes: Path, pairs: Path, tmp_path: Path
) -> None:
    place = {"PAIRS": str(pairs), "CLASSES": str(classes)}
    filled = {"data.train": str(classes), **FEW, **given}
    for name, path in place.items():
        filled = {key: value.replace(name, path) if isinstance(value, str) else value for key, value in filled.items()}
    with pytest.raises(UsageError, match=said):
        standalone.finetune(start.path, tmp_path / "out", filled)
    assert not (tmp_path / "out").exists()


def test_classes_that_a_tokenizer_takes_for_one_are_refused(start: Artifact) -> None:
    for names in (("red", "green", "Red"), (long := "red " * 100, f"{long}green")):
        with pytest.raises(UsageError, match=f"the classes {names[0]!r} and {names[-1]!r} are the same tokens"):
            check_told_apart(start, Classes(names, ("a {c}.", "{c}")))
    check_told_apart(start, Classes(("red", "green"), ("{c}",)))


def test_a_folder_of_such_a_class_is_refused(start: Artifact, tmp_path: Path) -> None:
    folders = write_classes(tmp_path / "colours")
    (folders / "green").rename(folders / "RED")
    with pytest.raises(UsageError, match="the classes 'RED' and 'red' are the same tokens"):
        standalone.finetune(start.path, tmp_path / "out", {"data.train": str(folders), **FEW})
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_end_with_what_one_does(start: Artifact, classes: Path, tmp_path: Path) -> None:
    given = ("--data", classes, "--optimizer-steps", 4, "--optimizer-batch", 16, "--augment", "none", "--alpha", 1)
    both = torchrun("finetune", start.path, *given, "--optimizer-precision", "float32", "--out", tmp_path / "two")
    assert both.returncode == 0, both.stderr
    values = {"data.train": str(classes), "optimizer.steps": 4, "optimizer.batch": 16, "augment": "none", "alpha": 1}
    one = standalone.finetune(start.path, tmp_path / "one", {**values, "optimizer.precision": "float32"})
    ours, theirs = (load_file(path / "model.safetensors") for path in (one.path, tmp_path / "two"))
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in ours)
