"""The qat stage behind a convolutional tower, and ranges that are given to one: on a small world, from the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from bad_fit import badly_fitted
from clip_world import write_squares, write_teacher
from safetensors.torch import load_file, save_file

from mmcompress.artifact import Artifact
from mmcompress.compress.int8.given import check_same_weights
from mmcompress.errors import UsageError
from mmcompress.int8 import INTEGERS, linear_modules, read_ranges
from mmcompress.manifest import Kind
from mmcompress.pipeline.recipe import load_recipe
from mmcompress.pipeline.run import run_recipe
from mmcompress.pipeline.single import run_single
from mmcompress.pipeline.standalone import qat

pytestmark = pytest.mark.usefixtures("better_than_chance")

KEPT = "image.blocks.5.expand"
KINDS = ("signed", "unsigned")
OPEN = {"max_drop": None, "max_flips": None}
PLAIN = tuple(
    f"--set={said}" for said in ("rounding=nearest", "bias_correction=false", "batch=20", "max_drop=1", "max_flips=1")
)
RECIPE = """
[data]
train = "{data}"
[teacher]
source = "{teacher}"
[student]
source = "mnv4-s-64"
image_size = 32
width = 0.25
[[stage]]
run = "embed"
views = 2
batch = 20
[[stage]]
run = "distill"
text = "keep"
optimizer = {{ steps = 6, batch = 20, lr = 2e-3, precision = "float32" }}
[[stage]]
run = "quantize"
method = "minmax"
smooth = []
rounding = "nearest"
bias_correction = false
batch = 20
max_drop = 1.0
max_flips = 1.0
"""
FEW = {"optimizer.steps": 25, "optimizer.batch": 20, "optimizer.lr": 0.03, "samples": 40, **OPEN}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that was trained a little, its plain INT8, and the same with ranges three times too wide and a
    convolution in float."""
    folder = tmp_path_factory.mktemp("conv-qat")
    write_squares(folder)
    recipe = RECIPE.format(data=folder, teacher=write_teacher(folder / "teacher"))
    (folder / "recipe.toml").write_text(recipe)
    made = run_recipe(load_recipe(folder / "recipe.toml"), folder / "run")
    made["distill"].path.rename(folder / "trained")
    made["quantize"].path.rename(folder / "plain")
    badly_fitted(Artifact.open(folder / "plain"), folder / "bad", 3, KEPT)
    return folder


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return qat(world / "bad", tmp_path_factory.mktemp("trained") / "qat", FEW)


def test_training_lowers_the_drift_of_the_graphs(world: Path, trained: Artifact) -> None:
    facts = trained.manifest.facts["qat"]
    left = [facts["drift_after"][kind]["image"] / facts["drift_before"][kind]["image"] for kind in KINDS]
    assert max(left) < 0.95 and all(facts["parts"][kind]["image"] for kind in KINDS)
    measured = trained.manifest.metrics["calibration"]["drift"]["unsigned"]["image"]
    assert measured == pytest.approx(facts["drift_after"]["unsigned"]["image"], rel=1e-3)
    bad = Artifact.open(world / "bad")
    changed = {name for name in bad.manifest.files if trained.manifest.files[name] != bad.manifest.files[name]}
    assert {"ranges.json", INTEGERS} <= changed and "model.safetensors" not in changed
    ranges, wide = read_ranges(trained), read_ranges(bad)
    assert ranges.keys() == wide.keys()
    sums = [name for name in ranges if name.startswith("image.") and name.endswith(".project.output")]
    read = [name for name in sums if name.split(".")[2] != KEPT.split(".")[2]]  # beside what is kept a sum reads floats
    assert len(read) == len(sums) - 1 > 0 and all(ranges[name]["high"] != wide[name]["high"] for name in read)
    rows = {row["module"]: row for row in trained.manifest.facts["sensitivity"]}
    assert rows[KEPT] == {"module": KEPT, "drift": 1.0, "kept": True}
    assert sum(name.startswith("image.") for name in rows) == sum(
        name.startswith("image.") for name in linear_modules(bad.model)
    )
    assert not any(KEPT in name for name in load_file(trained.file(INTEGERS)))


def test_a_tower_with_mobile_attention_is_trained_too(world: Path, tmp_path: Path) -> None:
    """Its convolution `query` has the last name of what attention products of transformers multiply."""
    recipe = (world / "recipe.toml").read_text().replace("mnv4-s-64", "mnv4-hm").replace("0.25", "0.25\ndepth = 0.3")
    (tmp_path / "recipe.toml").write_text(recipe)
    plain = run_recipe(load_recipe(tmp_path / "recipe.toml"), tmp_path / "run")["quantize"]
    queries = [name for name in linear_modules(plain.model) if name.startswith("image.") and name.endswith(".query")]
    assert queries and set(queries) <= read_ranges(plain).keys()
    trained = qat(plain.path, tmp_path / "qat", {**FEW, "optimizer.steps": 2})
    assert trained.manifest.facts["qat"]["trained"]
    assert {row["module"] for row in trained.manifest.facts["sensitivity"]} >= set(queries)


def test_it_exports_with_what_was_kept_in_float(trained: Artifact, tmp_path: Path) -> None:
    graphs = run_single("export", {}, {"precisions": ["fp32", "int8"]}, {"checkpoint": trained}, tmp_path / "onnx")
    for kind in ("signed", "unsigned"):
        graph = onnx.load(str(graphs.file(f"image-int8-{kind}.onnx"))).graph
        restored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        floats = [node.name for node in graph.node if node.op_type == "Conv" and node.input[1] not in restored]
        assert floats == [KEPT]


def test_given_ranges_stay_and_only_weights_are_rounded(world: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    given = ("--ranges", world / "plain", "--data", next(world.glob("squares-*.tar")))
    ended = cli("quantize", world / "trained", *given, *PLAIN, "--out", tmp_path / "again")
    assert ended.code == 0, ended.err
    again, plain = Artifact.open(tmp_path / "again"), Artifact.open(world / "plain")
    assert again.manifest.files["ranges.json"] == plain.manifest.files["ranges.json"]
    assert again.manifest.files[INTEGERS] == plain.manifest.files[INTEGERS]


@pytest.mark.parametrize(
    ("name", "factor", "said"),
    [
        ("vision_model.conv_stem.weight", -1.0, "of another model than"),
        ("vision_model.blocks.1.0.bn1.weight", 1.5, "trained too far apart: leave --ranges out"),
    ],
)
def test_ranges_of_other_activations_are_refused(
    name: str, factor: float, said: str, world: Path, tmp_path: Path
) -> None:
    weights = load_file(world / "trained" / "model.safetensors")
    save_file({**weights, name: factor * weights[name]}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError) as caught:
        check_same_weights(Artifact.open(world / "plain"), tmp_path)
    assert said in f"{caught.value} {caught.value.hint}"


def test_ranges_without_those_of_sums_are_refused(world: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    plain = Artifact.open(world / "plain")
    with Artifact.create(tmp_path / "less", kind=Kind.CHECKPOINT, stage="quantize", key="k") as draft:
        draft.inherit(plain, *plain.manifest.files)
        ranges = {name: ends for name, ends in read_ranges(plain).items() if not name.endswith(".output")}
        (draft.path / "ranges.json").write_text(json.dumps(ranges))
    data = next(world.glob("squares-*.tar"))
    ended = cli("quantize", world / "trained", "--ranges", tmp_path / "less", "--data", data, "--out", tmp_path / "q")
    assert ended.code == 2 and not (tmp_path / "q").exists()
    assert "less has no range of image.blocks.11.project.output" in " ".join(ended.err.split())
