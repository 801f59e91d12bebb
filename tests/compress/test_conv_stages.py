"""A convolutional student through the stages: trained, resumed, watched, exported, used; and where it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from clip_world import CAPTIONS, write_squares, write_teacher
from safetensors.torch import load_file, save_file

from mmcompress.artifact import Artifact
from mmcompress.compress.teacher import load_teacher
from mmcompress.compress.train import embed
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.compress.train.pairs import training_pairs
from mmcompress.compress.train.statistics import set_statistics
from mmcompress.compress.train.watching import Watch, embedded_pairs
from mmcompress.config import DataConfig, TeacherConfig
from mmcompress.convnet import ConvConfig
from mmcompress.distributed import World
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.measure.retrieval import retrieval
from mmcompress.pipeline.recipe import load_recipe
from mmcompress.pipeline.run import run_recipe
from mmcompress.pipeline.single import run_single

RECIPE = """
[data]
train = "{data}"
validation = "{data}"
[teacher]
source = "{teacher}"
[student]
source = "mnv4-s-64"
image_size = 32
[[stage]]
run = "embed"
views = 3
batch = 16
[[stage]]
run = "distill"
text = "keep"
watch = {{ steps = 3, keep_best = true }}
optimizer = {{ steps = 8, batch = 20, lr = 2e-3, ema = 0.9, save_minutes = 1e-9, precision = "float32" }}
[[stage]]
run = "export"
precisions = ["fp32", "fp16"]
"""
KIND = "is an artifact of kind 'onnx' hint: this needs one of kind 'checkpoint'"
RATES = ("images_per_s", "image_tower_per_s")
HERE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    data, teacher = write_squares(folder), write_teacher(folder / "teacher")
    (folder / "recipe.toml").write_text(RECIPE.format(data=data, teacher=teacher))
    return folder


@pytest.fixture(scope="module")
def made(world: Path) -> dict[str, Artifact]:
    return run_recipe(load_recipe(world / "recipe.toml"), world / "run")


def data_of(world: Path) -> str:
    return str(next(world.glob("squares-*.tar")))


def test_graphs_are_the_torch_model(made: dict[str, Artifact]) -> None:
    assert isinstance(made["distill"].model.image, ConvConfig)
    compared = made["export"].manifest.metrics["against_torch"]
    assert compared["image-fp32.onnx"]["max_abs"] < 1e-5
    assert compared["image-fp16.onnx"]["min_cosine"] > 0.999


def test_what_was_watched_is_what_was_saved(world: Path, made: dict[str, Artifact]) -> None:
    """The best averaged weights, with the statistics that they were measured with: the very same R@10 from the file."""
    artifact = made["distill"]
    model = dual_encoder_from_checkpoint(artifact.path, artifact.model)
    spec = data_of(world)
    sides = embedded_pairs(model, artifact, spec, 1000, 20, DataConfig(train=spec), torch.device("cpu"))
    shares = retrieval(*sides)
    assert artifact.manifest.metrics["training"]["best_r10"] == (shares["i2t_r10"] + shares["t2i_r10"]) / 2


def test_statistics_are_of_the_saved_weights(world: Path, made: dict[str, Artifact]) -> None:
    artifact = made["distill"]
    model, saved = (dual_encoder_from_checkpoint(artifact.path, artifact.model) for _ in range(2))
    embeddings = load_embeddings(made["embed"])
    data = DataConfig(train=data_of(world))
    pairs = training_pairs(artifact, data, batch=20, seed=0, here=HERE, embeddings=embeddings)
    set_statistics(model.image, (batch.pixels for batch in pairs.stream(0, 0)), HERE)
    for (name, own), kept in zip(model.named_buffers(), saved.buffers(), strict=True):
        torch.testing.assert_close(own, kept, msg=name)
    assert max(float((own - 1).abs().max()) for name, own in model.named_buffers() if name.endswith("variance")) > 0.1


def test_interrupted_and_run_again_ends_with_the_same_bytes(
    world: Path, made: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Exception):  # noqa: N818
        pass

    def broken(self: Watch, at: Any, *rest: Any) -> None:
        if at.step == 6:
            raise Interrupted
        look(self, at, *rest)

    look = Watch.look
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Watch, "look", broken)
        run_recipe(load_recipe(world / "recipe.toml"), world / "again")
    again = run_recipe(load_recipe(world / "recipe.toml"), world / "again")
    assert again["distill"].manifest.digest == made["distill"].manifest.digest


def test_it_is_used_and_shown_like_any_other(
    made: dict[str, Artifact], cli: Callable[..., Any], tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (40, 32), (96, 90, 32)).save(tmp_path / "square.png")
    shown = cli("inspect", made["distill"].path)
    assert shown.code == 0 and "convolutional, 17 blocks in 5 stages" in shown.out
    assert "96 channels at 4x4: ExtraDW 5-192-5 /2, 4 x IB 192-3, ConvNext 3-384" in " ".join(shown.out.split())
    (tmp_path / "labels.txt").write_text("red\nblue\n")
    named = cli("classify", made["export"].path, tmp_path / "square.png", "--labels", tmp_path / "labels.txt", "--json")
    assert named.code == 0
    assert sum(label["share"] for label in json.loads(named.out.strip().splitlines()[-1])) == pytest.approx(1)
    looked = cli("explain", made["export"].path, tmp_path / "square.png", "red", "--out", tmp_path / "e.png")
    assert looked.code == 0 and "by occlusion" in looked.out
    refused = cli(
        *("explain", made["distill"].path, tmp_path / "square.png", "red", "--method", "relevance"),
        *("--out", tmp_path / "e.png"),
    )
    assert refused.code == 2 and "no float checkpoint of a vision transformer" in " ".join(refused.err.split())
    packed = cli("pack", made["export"].path, "--out", tmp_path / "m.mmc")
    assert packed.code == 0 and (tmp_path / "m.mmc").is_file()


def test_pruned_it_trains_on_and_becomes_integers(
    world: Path, made: dict[str, Artifact], cli: Callable[..., Any], tmp_path: Path
) -> None:
    whole, data = made["distill"].model, ("--data", data_of(world))
    given = ("--embeddings", made["embed"].path, *data)
    pruned = tmp_path / "pruned"
    assert cli("prune", made["distill"].path, *given, "--batch=20", "--target-macs", "0.6", "--out", pruned).code == 0
    smaller = Artifact.open(pruned)
    assert smaller.model.macs <= 0.6 * whole.macs
    assert smaller.manifest.facts["macs_share"] == smaller.model.macs / whole.macs
    for said in ("--importance=magnitude", "--importance=taylor", "--set=refit=false", "--width=0.75"):
        asked = ("--batch=20", "--mlp=0.5", said, "--out", tmp_path / "other")
        assert cli("prune", made["distill"].path, *given, *asked).code == 0
    recovered = tmp_path / "recovered"
    steps = (
        "--set",
        "optimizer.steps=2",
        "--set",
        "optimizer.batch=20",
        "--set",
        "optimizer.precision=float32",
        "--set",
        "text=keep",
    )
    ended = cli("distill", "--from", pruned, *given, *steps, "--out", recovered)
    assert ended.code == 0, ended.err
    assert Artifact.open(recovered).model.image == smaller.model.image
    quantized = tmp_path / "int8"
    assert (
        cli("quantize", recovered, *data, "--set", "max_drop=1", "--set", "max_flips=1", "--out", quantized).code == 0
    )
    exported = tmp_path / "onnx"
    assert cli("export", quantized, "--precision", "fp32", "--precision", "int8", "--out", exported).code == 0
    assert Artifact.open(exported).manifest.metrics["against_torch"]["image-fp32.onnx"]["max_abs"] < 1e-5


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_fine_tuned_it_has_the_statistics_of_the_mixed_weights(
    alpha: float, world: Path, made: dict[str, Artifact], cli: Callable[..., Any], tmp_path: Path
) -> None:
    given = ("--data", data_of(world), "--validation", data_of(world), "--augment", "none", "--alpha", str(alpha))
    few = ("--set", "optimizer.epochs=1", "--set", "optimizer.batch=20", "--layer-decay", "0.5")
    ended = cli("finetune", made["distill"].path, *given, *few, "--out", tmp_path / "tuned")
    assert ended.code == 0, ended.err
    artifact, start = Artifact.open(tmp_path / "tuned"), made["distill"]
    tuned, before = (dual_encoder_from_checkpoint(one.path, one.model) for one in (artifact, start))
    if alpha == 0:
        assert all(
            torch.equal(a, b) for a, b in zip(tuned.state_dict().values(), before.state_dict().values(), strict=True)
        )
        return
    again = dual_encoder_from_checkpoint(artifact.path, artifact.model)
    pairs = training_pairs(artifact, DataConfig(train=data_of(world)), batch=20, seed=0, here=HERE, embeddings=None)
    set_statistics(again.image, (batch.pixels for batch in pairs.stream(0, 0)), HERE)
    for (name, kept), own in zip(tuned.named_buffers(), again.buffers(), strict=True):
        torch.testing.assert_close(kept, own, msg=name)
    moved = zip(tuned.image.parameters(), before.image.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ("prune", "{student}", "--data", "{data}", "--batch", "20", "--sparsity", "2:4"),
            "sparsity: 2:4 is of Linears, and this image tower has convolutions",
        ),
        (
            ("prune", "{student}", "--data", "{data}", "--batch", "20", "--heads", "0.5", "--set", 'towers=["image"]'),
            "heads is of transformer blocks, and this image tower is convolutional",
        ),
        (
            ("prune", "{student}", "--data", "{data}", "--batch", "20", "--target-macs", "0.1"),
            "the macs of the image tower cannot be pruned to 0.1x: the floor is 0.1",
        ),
        (
            ("prune", "{student}", "--data", "{data}", "--batch", "20", "--target-latency", "0.01"),
            "the latency of the image tower cannot be pruned to 0.01x",
        ),
        (("qat", "{student}", "--data", "{data}"), "has no ranges.json, so it is no quantized checkpoint"),
        (
            ("export", "{student}", "--precision", "fp8"),
            "an export in FP8 takes vision transformers, and this image tower",
        ),
        (
            ("distill", "--teacher", "{teacher}", "--student", "mnv4-s", "--data", "{data}", "--parts", "2"),
            "parts = 2 computes parts of a batch apart, and BatchNorm",
        ),
        (
            ("distill", "--from", "{student}", "--data", "{data}", "--parts", "2", "--embeddings", "{embeddings}"),
            "parts = 2 computes parts of a batch apart, and BatchNorm",
        ),
        (
            (
                "distill",
                "--teacher",
                "{teacher}",
                "--student",
                "mnv4-s",
                "--student-image-size",
                "0",
                "--data",
                "{data}",
            ),
            "image_size 0 is no side of an image",
        ),
        (("distill", "--teacher", "{teacher}", "--student", "mnv4-x", "--data", "{data}"), "unknown student 'mnv4-x'"),
        (
            ("distill", "--teacher", "{teacher}", "--student", "./nowhere", "--data", "{data}"),
            "there is no student folder ./nowhere",
        ),
    ],
)
def test_what_does_not_work_yet_is_refused_before_it_begins(
    command: tuple[str, ...],
    said: str,
    world: Path,
    made: dict[str, Artifact],
    cli: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"student": made["distill"].path, "embeddings": made["embed"].path, "teacher": world / "teacher"}
    filled = [word.format(data=data_of(world), **places) for word in command]
    ended = cli(*filled, "--out", tmp_path / "out")
    assert ended.code == 2
    assert said in " ".join(ended.err.split())
    assert not (tmp_path / "out").exists()


def test_it_is_a_teacher_though_transformers_has_no_class_for_it(
    world: Path, made: dict[str, Artifact], cli: Callable[..., Any], tmp_path: Path
) -> None:
    student = made["distill"]
    teacher = load_teacher(TeacherConfig(source=str(student.path)), torch.device("cpu"))
    model = dual_encoder_from_checkpoint(student.path, student.model)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(teacher.encode_image(pixels), model.encode_image(pixels))
    assert teacher.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    given, few = ("--teacher", student.path, "--data", data_of(world)), ("--optimizer-batch", "20")
    steps = ("--optimizer-steps", "1", "--embed-batch", "20", *few)
    small = ("--student", "vit-t8-64", "--student-image-size", "32", "--text", "keep")
    taught = cli("distill", *given, *small, *steps, "--out", tmp_path / "s")
    assert taught.code == 0, taught.err
    told = Artifact.open(tmp_path / "s")
    assert told.model.text == student.model.text and told.tokenizer == student.tokenizer
    assert told.file("tokenizer.json").read_bytes() == student.file("tokenizer.json").read_bytes()
    inherited = cli("distill", *given, "--student", "inherit:0.5", *steps, "--out", tmp_path / "i")
    assert inherited.code == 2 and "this image tower is convolutional" in inherited.err


@pytest.mark.parametrize("killed", [False, True])
def test_an_embedding_that_is_taken_over_says_a_speed_too(
    killed: bool, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which steps are told by, and what a pilot expects: a killed run may have left nothing to embed."""
    given = {"data.train": data_of(world), "teacher.source": str(world / "teacher"), "batch": 20}

    def run(share: float) -> dict[str, float]:
        asked = {**given, "data.max_bad_fraction": share}
        told: dict[str, float] = run_single("embed", {}, asked, {}, tmp_path / "e").manifest.metrics["embedding"]
        return told

    if killed:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(embed, "fill", Mock(side_effect=KeyboardInterrupt))
            run(0.05)
        told = run(0.05)
    else:
        first, told = run(0.05), run(0.06)
        assert first["images"] == 60
        assert [told[rate] for rate in RATES] == [first[rate] for rate in RATES]
    assert told["images"] == 0 and min(told[rate] for rate in RATES) > 0


def test_what_is_no_float_checkpoint_is_no_teacher(
    made: dict[str, Artifact], cli: Callable[..., Any], tmp_path: Path
) -> None:
    def refused(*command: object, code: int = 2) -> str:
        done = cli(*command, "--data", "demo:val", "--out", tmp_path / "out")
        assert done.code == code and "running" not in done.err and not (tmp_path / "out").exists(), done.err
        return " ".join(done.err.split())

    graphs, own = made["export"].path, made["distill"].path
    assert f"{graphs} {KIND}" in refused("embed", "--teacher", graphs)
    assert f"{graphs} {KIND}" in refused("shrink", graphs)
    damaged = tmp_path / "damaged"
    shutil.copytree(own, damaged)
    (damaged / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is damaged" in refused("embed", "--teacher", damaged, code=4)
    for stage, hint in (("baseline", "mmcompress export"), ("trace", "mmcompress export")):
        recipe = tmp_path / f"{stage}.toml"
        recipe.write_text(f"[teacher]\nsource = '{own}'\n[[stage]]\nrun = '{stage}'\n")
        done = cli("run", recipe, "--out", tmp_path / "out")
        assert done.code == 2 and hint in " ".join(done.err.split()), done.err


def test_its_text_tower_is_pruned_like_any_other(
    world: Path, made: dict[str, Artifact], cli: Callable[..., Any], tmp_path: Path
) -> None:
    given = ("--data", data_of(world), "--batch", 20, "--mlp-multiple", 8, "--set", 'towers=["text"]')
    assert cli("prune", made["distill"].path, *given, "--out", tmp_path / "pruned").code == 0
    before, after = made["distill"].model, Artifact.open(tmp_path / "pruned").model
    assert after.image == before.image and sum(after.text.mlp) == sum(before.text.mlp) // 2


def test_training_begins_with_published_weights(world: Path, tmp_path: Path) -> None:
    """And with its own colours: a folder that `save_checkpoint`'s names make a published one of."""
    tensors = {f"classifier.{leaf}": torch.zeros(2, 2) for leaf in ("weight", "bias")}
    given = {"student.source": "mnv4-s-64", "student.image_size": 32, "data.train": data_of(world)}
    short = {"optimizer.steps": 1, "optimizer.batch": 20, "optimizer.lr": 1e-9, "vocab": 320, "context": 16}
    first = run_single("train", {}, {**given, **short}, {}, tmp_path / "first")
    own = load_file(first.file("model.safetensors"))
    image = {name.removeprefix("vision_model."): x for name, x in own.items() if name.startswith("vision_model.")}
    folder = tmp_path / "published"
    folder.mkdir()
    save_file({**image, **tensors}, folder / "model.safetensors")
    cfg = '{"input_size": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}'
    text = '{"architecture": "mobilenetv4_conv_small", "pretrained_cfg": ' + cfg + "}"
    (folder / "config.json").write_text(text)
    second = run_single("train", {}, {**given, **short, "student.source": str(folder)}, {}, tmp_path / "second")
    preprocessing = second.preprocessing
    assert preprocessing is not None and preprocessing.mean == (0.4, 0.5, 0.6) and preprocessing.size == 32
    again = load_file(second.file("model.safetensors"))
    np.testing.assert_allclose(
        again["vision_model.conv_stem.weight"].numpy(), own["vision_model.conv_stem.weight"].numpy(), atol=1e-6
    )
    assert len(CAPTIONS) == 60
