"""The training stages end to end on a small world: what they make, what they reuse, what survives a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cached import cached
from clip_world import CAPTIONS, write_squares, write_teacher
from safetensors.torch import load_file, save_file

from mmcompress.artifact import Artifact
from mmcompress.compress.teacher import Teacher, load_teacher
from mmcompress.compress.train import embed
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.config import TeacherConfig
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.manifest import Kind
from mmcompress.pipeline.recipe import load_recipe
from mmcompress.pipeline.run import run_recipe, run_stage
from mmcompress.stages import STAGES

RECIPE = """
[data]
train = "{data}"
test = "{data}"
[teacher]
source = "{teacher}"
[student]
source = "inherit:0.8"
[[stage]]
run = "embed"
views = 3
batch = 16
[[stage]]
run = "distill"
optimizer = {{ epochs = 12, batch = 20, lr = 3e-3, save_minutes = 1e-9 }}
[[stage]]
run = "prune"
heads = 0.5
mlp_multiple = 8
importance = "taylor"
refit = false
samples = 40
batch = 20
[[stage]]
run = "distill"
name = "recover"
optimizer = {{ epochs = 6, batch = 20, lr = 2e-3 }}
[[stage]]
run = "quantize"
samples = 48
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    data, teacher = write_squares(folder), write_teacher(folder / "teacher")
    (folder / "recipe.toml").write_text(RECIPE.format(data=data, teacher=teacher))
    return folder


@pytest.fixture(scope="module")
def made(world: Path) -> dict[str, Artifact]:
    return run_recipe(load_recipe(world / "recipe.toml"), world / "run")


def test_embeddings_are_the_teachers_own(world: Path, made: dict[str, Artifact]) -> None:
    images, texts = cached(made["embed"])
    teacher = load_teacher(TeacherConfig(source=str(world / "teacher")), torch.device("cpu"))
    assert images.shape == (60, 3, 32) and texts.shape == (60, 32)
    direct = teacher.encode_text(CAPTIONS)
    torch.testing.assert_close(texts, direct, atol=1e-3, rtol=0)
    assert not torch.equal(images[:, 0], images[:, 1])


def agreement(artifact: Artifact, embeddings: Artifact) -> float:
    """Mean cosine between a checkpoint's text embeddings and the teacher's."""
    from mmcompress.runtime.tokenize import load_tokenizer, tokenize

    text = artifact.tokenizer
    assert text is not None
    tokens = tokenize(load_tokenizer(artifact.file(text.file)), CAPTIONS, text)
    with torch.no_grad():
        ours = dual_encoder_from_checkpoint(artifact.path, artifact.model).encode_text(torch.from_numpy(tokens))
    return float((ours * cached(embeddings)[1]).sum(dim=1).mean())


def test_recovery_brings_a_pruned_student_back(made: dict[str, Artifact]) -> None:
    distilled, pruned, recovered = (agreement(made[n], made["embed"]) for n in ("distill", "prune", "recover"))
    assert distilled > 0.95
    assert recovered > pruned
    assert made["prune"].model.macs < 0.7 * made["distill"].model.macs


def test_a_refit_pruned_student_is_nearer_before_any_training(world: Path, made: dict[str, Artifact]) -> None:
    stage = STAGES["prune"]
    fields, config = stage.config.model_fields, made["prune"].manifest.config
    said = {key: value for key, value in config.items() if value != fields[key].get_default()}
    values = {**said, "importance": "activation", "refit": True}
    sources = {role: made[name] for role, name in (("checkpoint", "distill"), ("embeddings", "embed"))}
    refitted = run_stage(stage, stage.config.model_validate(values), sources, (), world / "refitted")
    assert refitted.model == made["prune"].model
    assert agreement(refitted, made["embed"]) > agreement(made["prune"], made["embed"])


def test_a_little_pruned_and_recovered_twice(world: Path, made: dict[str, Artifact]) -> None:
    """An iterative schedule is four tables; a block can go on the way."""
    text = (world / "recipe.toml").read_text().split('[[stage]]\nrun = "prune"')[0]
    for round_, share in enumerate(("0.8x", 0.6)):
        text += f"""[[stage]]
run = "prune"
name = "prune{round_}"
target_macs = {share!r}
mlp_multiple = 8
samples = 20
batch = 20
[[stage]]
run = "distill"
name = "recover{round_}"
optimizer = {{ steps = 3, batch = 20, lr = 1e-3 }}
"""
    (world / "twice.toml").write_text(text)
    found = run_recipe(load_recipe(world / "twice.toml"), world / "run")
    full, first, second = (found[name].model for name in ("distill", "recover0", "recover1"))
    assert first.macs <= 0.8 * full.macs and second.macs <= 0.6 * first.macs
    assert first.text.macs(32) <= 0.8 * full.text.macs(32)
    dual_encoder_from_checkpoint(found["recover1"].path, second)  # strict


def test_every_checkpoint_loads_strictly_and_says_its_size(made: dict[str, Artifact]) -> None:
    for name in ("distill", "prune", "recover", "quantize"):
        artifact = made[name]
        model = dual_encoder_from_checkpoint(artifact.path, artifact.model)
        assert artifact.manifest.facts["params"] == sum(p.numel() for p in model.parameters())
    assert len(made["quantize"].manifest.files) == len(made["recover"].manifest.files) + 3  # ranges, integers, seen


def digests(artifacts: dict[str, Artifact]) -> dict[str, str]:
    return {name: artifact.digest for name, artifact in artifacts.items()}


def test_a_rerun_does_no_work(world: Path, made: dict[str, Artifact]) -> None:
    before = {name: (a.path / "manifest.json").stat().st_mtime_ns for name, a in made.items()}
    again = run_recipe(load_recipe(world / "recipe.toml"), world / "run")
    assert {name: (a.path / "manifest.json").stat().st_mtime_ns for name, a in again.items()} == before


def test_another_folder_gives_the_same_digests(world: Path, made: dict[str, Artifact]) -> None:
    assert digests(run_recipe(load_recipe(world / "recipe.toml"), world / "elsewhere")) == digests(made)


def test_a_change_runs_what_depends_on_it_and_nothing_else(world: Path, made: dict[str, Artifact]) -> None:
    other_test = run_recipe(
        load_recipe(world / "recipe.toml", {"data.test": str(world / "recipe.toml")}), world / "run"
    )
    assert digests(other_test) == digests(made)
    pruned_less = run_recipe(load_recipe(world / "recipe.toml", {"prune.mlp": 0.75}), world / "elsewhere")
    changed = {name for name in made if digests(pruned_less)[name] != digests(made)[name]}
    assert changed == {"prune", "recover", "quantize"}


def test_a_damaged_artifact_is_made_again(world: Path, made: dict[str, Artifact]) -> None:
    target = made["prune"].file("model.safetensors")
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    with pytest.raises(CorruptInputError):
        Artifact.open(made["prune"].path)
    assert digests(run_recipe(load_recipe(world / "recipe.toml"), world / "run")) == digests(made)


def test_killed_and_run_again_ends_with_the_same_digests(world: Path, made: dict[str, Artifact]) -> None:
    out = world / "killed"
    script = (
        "import sys; from pathlib import Path; from mmcompress.pipeline.run import run_recipe;"
        "from mmcompress.pipeline.recipe import load_recipe;"
        "run_recipe(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(world / "recipe.toml"), str(out)]
    process = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
    work = out / ".distill.work"
    deadline = time.monotonic() + 60
    while not list(work.glob("state-*.safetensors")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(work.glob("state-*.safetensors")) and not (out / "distill").exists()
    assert digests(run_recipe(load_recipe(world / "recipe.toml"), out)) == digests(made)


def test_killed_embedding_goes_on_at_its_last_chunk(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(world / "recipe.toml")
    only_embed = recipe.model_copy(update={"stages": recipe.stages[:1]})
    monkeypatch.setattr(embed, "_CHUNK", 16)
    whole = run_recipe(only_embed, tmp_path / "whole")
    calls = 0

    def dying(config: TeacherConfig, device: torch.device) -> Teacher:
        teacher = load_teacher(config, device)

        def encode_image(pixels: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == 8:  # the third of four chunks, three views each
                raise KeyboardInterrupt
            return teacher.encode_image(pixels)

        return replace(teacher, encode_image=encode_image)

    monkeypatch.setattr(embed, "load_teacher", dying)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(only_embed, tmp_path / "parts")
    assert not (tmp_path / "parts" / "embed").exists()
    assert digests(run_recipe(only_embed, tmp_path / "parts")) == digests(whole)
    assert calls == 8 + 2 * 3, "two chunks were left to do"


def test_text_tower_can_be_kept(world: Path) -> None:
    recipe = load_recipe(
        world / "recipe.toml",
        {
            "distill.text": "keep",
            "student.source": "vit-m8-64",
            "distill.optimizer.epochs": 1,
            "prune.towers": ["image"],
        },
    )
    kept = run_recipe(recipe, world / "kept")
    assert agreement(kept["distill"], kept["embed"]) == pytest.approx(1, abs=1e-4)


def test_embeddings_of_other_data_are_refused(world: Path, made: dict[str, Artifact], tmp_path: Path) -> None:
    found = load_embeddings(made["embed"])
    with pytest.raises(CorruptInputError, match="'stranger' has no teacher embedding"):
        found.lookup(["stranger"], [bytes(16)], np.array([0]), [0])


@pytest.mark.parametrize("side", ["images", "texts"])
def test_embeddings_that_are_not_finite_are_refused_by_sample(
    made: dict[str, Artifact], tmp_path: Path, side: str
) -> None:
    with Artifact.create(tmp_path / "broken", kind=Kind.EMBEDDINGS, stage="embed", key="e") as draft:
        (draft.path / "shards").mkdir()
        draft.inherit(made["embed"], *made["embed"].manifest.files)
        draft.facts = made["embed"].manifest.facts
        (chunk,) = draft.path.glob("shards/*")
        tensors = load_file(chunk)
        tensors[side][7, ..., 3] = float("-inf")
        save_file(tensors, chunk)
    found, marks = load_embeddings(Artifact.open(tmp_path / "broken")), tensors["marks"].numpy()
    keys = [f"squares-00000/{n:04d}" for n in range(60)]
    found.lookup(keys[:7], [mark.tobytes() for mark in marks[:7]], np.zeros(7, np.int64), [0] * 7)
    with pytest.raises(CorruptInputError, match=r"embedding of the sample 'squares-00000/0007' is not finite"):
        found.lookup(keys, [mark.tobytes() for mark in marks], np.zeros(60, np.int64), [0] * 60)
    with pytest.raises(CorruptInputError, match=r"embedding of the sample 'squares-00000/0007' is not finite"):
        found.anchors(60, torch.device("cpu"))


def test_a_student_is_needed(world: Path, tmp_path: Path) -> None:
    text = (world / "recipe.toml").read_text().replace('[student]\nsource = "inherit:0.8"\n', "")
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(UsageError, match="needs a student"):
        run_recipe(load_recipe(tmp_path / "recipe.toml"), tmp_path / "run")
