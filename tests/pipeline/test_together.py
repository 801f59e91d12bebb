"""Two processes of torchrun against one: the same artifacts, one voice, one end, and a restart that changes nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from clip_world import write_squares, write_teacher
from safetensors.torch import load_file
from shards import shard
from together_recording import recorded
from torchrun import ENVIRONMENT, command, torchrun

from mmcompress.artifact import Artifact
from mmcompress.pipeline import standalone
from mmcompress.pipeline.recipe import parse_assignments

FEW = ("optimizer.steps=4", "optimizer.batch=20", "optimizer.precision=float32")
FLOAT = '{steps = 4, batch = 20, precision = "float32"}'
RECIPE = f"""
[data]
train = "DATA"
[teacher]
source = "TEACHER"
[[stage]]
run = "embed"
views = 2
batch = 10
[[stage]]
run = "distill"
name = "projected"
student = {{source = "vit-t8-64", image_size = 32}}
embed_dim = 16
contrastive = 0.3
interactive = 0.3
optimizer = {FLOAT}
[[stage]]
run = "train"
student = {{source = "vit-t8-64", image_size = 32}}
optimizer = {FLOAT}
[[stage]]
run = "distill"
student = {{source = "inherit:0.5"}}
contrastive = 0.3
affinity = 0.2
interactive = 0.3
optimizer = {FLOAT}
[[stage]]
run = "quantize"
samples = 40
batch = 20
method = "percentile"
percentile = 90
max_drop = 1.0
max_flips = 1.0
"""
RECORDING = """
import sys
from pathlib import Path
from together_recording import recorded
from mmcompress.cli.main import main

with recorded(Path(sys.argv.pop(1))):
    main()
"""
FAILING = """
import os, sys
from mmcompress.cli.main import main
from mmcompress.compress.train import distill, state

def fail(*_):
    raise ZeroDivisionError("a bug")

def die(*_):
    os.kill(os.getpid(), 9)

def differ(tensors, here):
    tensors = list(tensors)
    broadcast(tensors, here)
    tensors[0].detach().add_(1)

broadcast, kind = state.of_first_rank, sys.argv.pop(1)
if os.environ["RANK"] == "1":
    if kind == "has another state":
        state.of_first_rank = differ
    else:
        distill.distillation_terms = {"fails": fail, "is killed": die}[kind]
main()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its teacher and its data, and a script that records gradients."""
    folder = tmp_path_factory.mktemp("together")
    write_squares(folder)
    shard(folder / "noise-00000.tar", 20)
    teacher = write_teacher(folder / "teacher")
    recipe = RECIPE.replace("DATA", str(folder)).replace("TEACHER", str(teacher))
    (folder / "recipe.toml").write_text(recipe)
    (folder / "recording.py").write_text(RECORDING)
    (folder / "failing.py").write_text(FAILING)
    return folder


@pytest.fixture(scope="module")
def runs(world: Path) -> Path:
    """The recipe by one process and by two, and `qat` of one and the same checkpoint by both."""
    given = parse_assignments([*FEW, "max_drop=0", "max_flips=0", "samples=40", "batch=20"])
    with recorded(world / "gradients-1"):
        standalone.run(str(world / "recipe.toml"), world / "run-1")
    with recorded(world / "gradients-qat-1"):
        standalone.qat(world / "run-1" / "quantize", world / "qat-1", given)
    run = ("run", world / "recipe.toml", "--out", world / "run-2")
    qat = ("qat", world / "run-1" / "quantize", "--out", world / "qat-2")
    said = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    for gradients, asked in (("gradients-2", run), ("gradients-qat-2", (*qat, *said))):
        ended = torchrun(world / gradients, *asked, script=world / "recording.py")
        assert ended.returncode == 0, ended.stderr
    return world


@pytest.mark.slow
def test_embeddings_are_the_same_bytes(runs: Path) -> None:
    one, two = (Artifact.open(runs / f"run-{processes}" / "embed") for processes in (1, 2))
    assert len(one.manifest.files) == 3, "a shard for each process, and the list of them"
    assert one.manifest.files == two.manifest.files and one.digest == two.digest


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_one_process(runs: Path) -> None:
    """Of `distill` into another width, of `train` with a guide, and of `distill`, step by step."""
    for step in range(12):
        one, two = (load_file(runs / f"gradients-{processes}" / f"{step:02d}.safetensors") for processes in (1, 2))
        assert one.keys() == two.keys() and len(one) > 20
        for name, expected in one.items():
            torch.testing.assert_close(two[name], expected, atol=1e-5, rtol=1e-5, msg=f"step {step}: {name}")


@pytest.mark.slow
def test_qat_has_the_gradients_of_one_process(runs: Path) -> None:
    """Each process has one kind of integers. Only the first step, as the next one rounds weights that differ by 1e-6.

    The loss is 1 - cosine in float32 over the drift, so it is known to a rounding of 1 over the drift.
    """
    one, two = (load_file(runs / f"gradients-qat-{processes}" / "00.safetensors") for processes in (1, 2))
    assert one.keys() == two.keys() and len(one) > 200
    for name, expected in one.items():
        if name != "figures":
            torch.testing.assert_close(two[name], expected, atol=1e-5, rtol=1e-4, msg=name)
    (_, norm, loss, *_), (_, same_norm, same_loss, *_) = (run["figures"].tolist() for run in (one, two))
    drifts = Artifact.open(runs / "qat-1").manifest.facts["qat"]["drift_before"]
    least = min(drift for towers in drifts.values() for drift in towers.values())
    assert same_norm == pytest.approx(norm, rel=1e-4)
    assert same_loss == pytest.approx(loss, abs=torch.finfo(torch.float32).eps / least)


@pytest.mark.slow
def test_weights_and_reported_losses_are_those_of_one_process(runs: Path) -> None:
    for stage in ("train", "distill"):
        one, two = (Artifact.open(runs / f"run-{processes}" / stage) for processes in (1, 2))
        weights, others = (load_file(artifact.file("model.safetensors")) for artifact in (one, two))
        for name, expected in weights.items():
            torch.testing.assert_close(others[name], expected, atol=1e-4, rtol=1e-3, msg=name)
        losses = [artifact.manifest.metrics["training"]["loss"] for artifact in (one, two)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
def test_a_run_that_is_there_is_reused_whoever_made_it(runs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (runs / "run-1").glob("*/manifest.json")}
    again = torchrun("run", runs / "recipe.toml", "--out", runs / "run-1", "--json")
    assert again.returncode == 0 and again.stderr.count("reused") == len(before) == 5
    assert len(again.stdout.splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in (runs / "run-1").glob("*/manifest.json")}


@pytest.mark.slow
def test_a_convolutional_student_is_that_of_one_process(world: Path, tmp_path: Path) -> None:
    """Its BatchNorms normalize by the batch of all, and their statistics are made of all, while it trains and after it.

    On noise: of images of one colour the gradient of one process is a tenth off in float32 (float64 tells), since what
    a BatchNorm then divides by is nearly nothing.
    """
    data = tmp_path / "data"
    data.mkdir()
    for number in range(2):
        shard(data / f"noise-{number:05d}.tar", 32, 32 * number)
    standalone.embed(tmp_path / "e", {"teacher.source": str(world / "teacher"), "data.train": str(data), "batch": 16})
    source, watched = "mnv4-s-64", {"watch.steps": 2, "watch.samples": 64, "data.validation": str(data)}
    student = {"student.image_size": 32, "student.width": 0.25, "student.depth": 0.5}
    optimizer = {"optimizer.batch": 32, "optimizer.steps": 4, "optimizer.precision": "float32", "optimizer.ema": 0.5}
    given = {"student.source": source, **student, **watched, **optimizer}
    with recorded(tmp_path / "gradients-1"):
        one = standalone.distill(tmp_path / "one", given, embeddings=tmp_path / "e")
    said = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    asked = ("distill", "--embeddings", tmp_path / "e", "--out", tmp_path / "two", *said)
    ended = torchrun(tmp_path / "gradients-2", *asked, script=world / "recording.py")
    assert ended.returncode == 0, ended.stderr
    for step in range(4):
        first, second = (load_file(tmp_path / f"gradients-{size}" / f"{step:02d}.safetensors") for size in (1, 2))
        assert first.keys() == second.keys() and len(first) > 100
        torch.testing.assert_close(second.pop("figures"), first.pop("figures"), atol=1e-4, rtol=1e-3)
        of_one, of_two = (torch.cat([each[name].flatten() for name in sorted(first)]) for each in (first, second))
        assert (of_two - of_one).norm() < 0.01 * of_one.norm(), f"step {step}"
    two = Artifact.open(tmp_path / "two")
    weights, others = (load_file(artifact.file("model.safetensors")) for artifact in (one, two))
    for name, expected in weights.items():
        torch.testing.assert_close(others[name], expected, atol=1e-4, rtol=1e-3, msg=name)
    recalls = [artifact.manifest.metrics["training"]["best_r10"] for artifact in (one, two)]
    assert recalls[1] == pytest.approx(recalls[0], abs=0.01)  # of 128 answers


def distillation(world: Path, out: Path, steps: int = 4) -> list[object]:
    options = ["--data", world, "--teacher", world / "teacher", "--student", "inherit:0.5", "--set", "embed.batch=20"]
    few = ["--optimizer-steps", steps, "--optimizer-batch", 20, "--optimizer-save-minutes", 0.0001]
    return ["distill", "--out", out, *options, *few]


def exit_codes(stderr: str) -> list[int]:
    """Those of the ranks, as torchrun's own summary has them."""
    return [int(code) for code in re.findall(r"exitcode  : (-?\d+)", stderr)]


def test_what_rank_0_refuses_ends_all_with_one_voice(world: Path, tmp_path: Path) -> None:
    ended = torchrun(*distillation(world, tmp_path / "out"), "--optimizer-batch", 15)
    assert ended.returncode == 1  # torchrun's own
    assert exit_codes(ended.stderr) == [2, 2]
    assert ended.stderr.count("error: optimizer.batch = 15 pairs a step cannot be shared evenly by 2 processes") == 1
    assert ended.stderr.count("hint: give a multiple of 2") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("fails", "error: rank 1 of 2: ZeroDivisionError: a bug"),
        ("has another state", "error: rank 1 of 2 does not have rank 0's state at step 0"),
        ("is killed", "exitcode  : -9"),
    ],
)
def test_rank_1_fails(world: Path, tmp_path: Path, kind: str, told: str) -> None:
    ended = torchrun(kind, *distillation(world, tmp_path / "out"), script=world / "failing.py")
    assert ended.returncode == 1
    assert told in ended.stderr
    assert ended.stderr.count("error: rank 1") == (kind != "is killed")
    assert ("ZeroDivisionError: a bug\n" in ended.stderr) == (kind == "fails")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["out-embeddings"]


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_and_changes_nothing(world: Path, tmp_path: Path) -> None:
    """Rank 1 has no state of its own: what it goes on from is rank 0's."""
    whole = torchrun(*distillation(world, tmp_path / "whole" / "out", 150))
    assert whole.returncode == 0, whole.stderr
    started = command(*distillation(world, tmp_path / "killed" / "out", 150), restarts=1)
    with subprocess.Popen(started, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as run:
        assert run.stderr is not None
        while not [*(tmp_path / "killed" / ".out.work").glob("state-*.safetensors")]:
            assert run.poll() is None
            time.sleep(0.01)
        os.kill(rank_1_of(run.pid), signal.SIGKILL)
        told = run.stderr.read()
        assert run.wait(timeout=120) == 0, told
    assert told.count("distill (out)          running") == 2 and "goes on after step" in told
    one, two = (Artifact.open(tmp_path / name / "out") for name in ("whole", "killed"))
    assert one.manifest.files == two.manifest.files and one.digest == two.digest
    assert not [path for path in (tmp_path / "killed").iterdir() if path.name[0] == "."]


def rank_1_of(launcher: int) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(launcher) and b"\0RANK=1\0" in (folder / "environ").read_bytes():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError("there is no rank 1")
