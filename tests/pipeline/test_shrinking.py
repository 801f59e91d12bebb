"""`mmcompress shrink`: the whole way with one page, on parts of the data that share no sample."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import conv_teacher
import pytest
from photos import write_photos

from mmcompress.artifact import Artifact
from mmcompress.compress.prune import latency_target
from mmcompress.data.batches import read
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.int8 import INTEGERS
from mmcompress.manifest import Kind
from mmcompress.measure.bench import blockcosts
from mmcompress.measure.verdict import contest
from mmcompress.pipeline import shrinking, standalone
from mmcompress.pipeline.recipe import Recipe
from mmcompress.pipeline.shrinking import Wish, parts, recipe_for, recovery_steps, shrink
from mmcompress.pipeline.single import run_single

Cli = Callable[..., Any]


@pytest.fixture
def photos(tmp_path: Path, coloured_squares: Path) -> Path:
    return write_photos(tmp_path / "photos", coloured_squares, 10)


def test_what_judges_is_apart_from_what_is_fitted(photos: Path) -> None:
    cut = parts(Wish(str(photos)))
    keys = {name: {sample.key for sample in read(spec)} for name, spec in cut.items()}
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == 320
    assert min(len(keys["validation"]), len(keys["test"])) > 40


def test_only_what_is_not_named_is_cut_off(photos: Path) -> None:
    both = parts(Wish(str(photos), validation="demo:val", test="demo:test", labels="demo:names"))
    assert both == {
        "train": str(photos),
        "validation": "demo:val",
        "test": "demo:test",
        "labels": "demo:names",
    }
    one = parts(Wish(str(photos), test="demo:test"))
    assert one["test"] == "demo:test" and one["train"].startswith("part:2-9/10:")
    assert one["validation"] == f"part:0-1/10:{photos}"


def test_too_little_to_keep_some_apart_is_said_at_once(coloured_squares: Path) -> None:
    with pytest.raises(UsageError, match="has 32 samples, too few to keep some apart"):
        parts(Wish(str(coloured_squares)))


def test_an_out_folder_among_the_photos_is_refused_first(photos: Path, tiny_clip_folder: Path) -> None:
    with pytest.raises(UsageError, match="lies below"):
        shrink(str(tiny_clip_folder), photos / "small", Wish(str(photos)))
    assert not (photos / "small").exists()


@pytest.mark.parametrize("stock", [True, False])
def test_a_quantized_checkpoint_is_not_shrunk_from_its_float_weights(tmp_path: Path, photos: Path, stock: bool) -> None:
    with Artifact.create(tmp_path / "int8", kind=Kind.CHECKPOINT, stage="quantize", key="") as draft:
        for name in (INTEGERS, *(["config.json"] if stock else [])):
            (draft.path / name).write_text("{}")
    with pytest.raises(UsageError, match="is quantized"):
        shrink(str(tmp_path / "int8"), tmp_path / "out", Wish(str(photos)))


def test_stages_are_those_that_were_asked_for(photos: Path) -> None:
    def names(steps: int = 0, **asked: Any) -> list[str]:
        wish = Wish(str(photos), **asked)
        return [table.name for table in recipe_for("demo:teacher", wish, parts(wish), "onnxruntime", steps).stages]

    measured = ["quantize", "int8", "bench", "drift", "report"]
    assert names() == ["convert", "teacher", *measured]
    pruned = ["convert", "teacher", "embed", "prune", "pruned"]
    assert names(target_latency="0.5x") == [*pruned, *measured]
    assert names(3, target_latency="0.5x") == [*pruned, "recover", "recovered", *measured]


def test_photos_by_year_are_told_to_be_classes(
    tmp_path: Path,
    coloured_squares: Path,
    tiny_clip_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for year in range(2015, 2021):
        shutil.copytree(coloured_squares, tmp_path / "photos" / str(year))
    monkeypatch.setattr(shrinking, "run_recipe", lambda *_: {})
    shrink(str(tiny_clip_folder), tmp_path / "out", Wish(str(tmp_path / "photos")))
    assert "taken for 6 classes" in " ".join(capsys.readouterr().err.split())

    def stop(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(standalone.training, "_embeddings", stop)
    with pytest.raises(InterruptedError):
        standalone.prune(str(tiny_clip_folder), tmp_path / "p", {"data.train": str(tmp_path / "photos")})
    assert "taken for 6 classes" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_pruned_is_told_to_leave_the_target_out(tmp_path: Path, photos: Path) -> None:
    source = f"{conv_teacher.__file__}:teacher"
    with pytest.raises(UsageError, match="cannot be pruned: it is of no family") as caught:
        shrink(source, tmp_path / "out", Wish(str(photos), target_latency="0.5x"))
    assert "leave --target-latency out" in caught.value.hint and not (tmp_path / "out").exists()
    wish = Wish(str(photos))
    stages = recipe_for(source, wish, parts(wish), "onnxruntime", 0).stages
    assert [table.run for table in stages][:3] == ["trace", "quantize-graphs", "verdict"], "which goes without"


def test_minutes_become_steps_by_recorded_figures(tmp_path: Path) -> None:
    made = []
    for name, facts, metrics in (
        ("e", {}, {"embedding": {"images_per_s": 9.0, "image_tower_per_s": 96.0}}),
        ("p", {"macs_share": 0.5}, {}),
    ):
        with Artifact.create(tmp_path / name, kind=Kind.CHECKPOINT, stage="embed", key=name) as draft:
            draft.facts, draft.metrics = facts, metrics
        made.append(Artifact.open(tmp_path / name))
    assert recovery_steps(2.0, *made) == 120  # 2 * 60 s * 96 images / (3 passes * 0.5 * 64 images)
    assert recovery_steps(1e-6, *made) == 1


def test_what_cannot_run_is_refused_before_the_first_step(tmp_path: Path, photos: Path, tiny_clip_folder: Path) -> None:
    asked: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"target_latency": "2x"}, UsageError, "target_latency"),
        ({"backend": "tensorrt"}, MissingRequirementError, "it does not run here"),
        ({"overrides": ("quantize.device=cuda:7",)}, MissingRequirementError, "device = 'cuda:7'"),
        ({"overrides": ("quantise.samples=3",)}, UsageError, "no table or stage 'quantise'"),
        ({"overrides": ("quantize.sample=3",)}, UsageError, "unknown key 'sample'"),
        (
            {"minutes": 1.0, "target_latency": "0.5x", "overrides": ("recover.stepz=3",)},
            UsageError,
            "unknown key 'stepz'",
        ),
    ]
    for wish, kind, message in asked:
        with pytest.raises(kind, match=message):
            shrink(str(tiny_clip_folder), tmp_path / "out", Wish(str(photos), **wish))
        assert not (tmp_path / "out").exists()


def test_the_whole_way(
    cli: Cli, tmp_path: Path, photos: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ROUND_S": 0.002, "SCREENING_ROUNDS": 4, "ROUNDS": 4}.items():
        monkeypatch.setattr(contest, name, value)
    monkeypatch.setattr(blockcosts, "ROUND_S", 0.002)
    monkeypatch.setattr(latency_target, "RACE_S", 0.1)
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path / "cache"))
    quick = (
        *("--set", "quantize.samples=32", "--set", "quantize.batch=16", "--set", "int8.seconds=0.01"),
        *("--set", "bench.rounds=4", "--set", "bench.seconds=0.05", "--set", "bench.ceiling=false"),
        *("--set", "prune.mlp_multiple=64", "--set", "prune.samples=64", "--set", "quantize.sensitivity=false"),
    )
    out = tmp_path / "out"
    target = ("--target-latency", "0.95x", "--minutes", "0.0001", "--backend", "onnxruntime")
    asked = ("shrink", tiny_clip_folder, "--data", photos, *target, "--out", out, *quick)
    done = cli(*asked)
    assert done.code == 0, done.err
    page = json.loads((out / "report" / "report.json").read_text())
    assert [row["row"] for row in page["rows"]] == ["teacher", "pruned", "recovered", "int8"]
    assert page["rows"][-1]["precision"] == "int8" and page["rows"][-1]["latency"]
    assert page["rows"][-1]["int8_against_fp32"]["row"] == "recovered"
    assert page["verdicts"] and any("no captions" in warning for warning in page["warnings"])
    assert page["test"]["data"].startswith("part:")
    (verdict,) = page["verdicts"]
    said = f"right is what FP32 answers among {verdict['texts']} sentences that ship."
    assert verdict["own_answers"] and verdict["recommendation"]["sentence"].endswith(said)
    assert f"drift is from FP32 on {verdict['pairs']} photos of part:" in (out / "report" / "report.html").read_text()
    assert (out / "report" / "report.html").is_file() and (out / "report" / "report.md").is_file()
    again = cli(*asked)
    assert again.code == 0 and "running" not in again.err


def test_a_convolutional_student_is_its_own_teacher_and_recovers_at_a_rate_of_its_own(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"student.source": "mnv4-s-64", "student.image_size": 32, "data.train": "demo:val"}
    short = {"optimizer.steps": 1, "optimizer.batch": 32, "vocab": 320, "context": 16}
    student = run_single("train", {}, {**given, **short}, {}, tmp_path / "student")
    converted = run_single("convert", {}, {"teacher.source": str(student.path)}, {}, tmp_path / "c")
    assert converted.model == student.model and converted.tokenizer == student.tokenizer
    assert converted.manifest.files["model.safetensors"] == student.manifest.files["model.safetensors"]
    asked: list[Recipe] = []

    def run(recipe: Recipe, *_: object) -> dict[str, Artifact]:
        asked.append(recipe)
        speed, share = {"embedding": {"image_tower_per_s": 64.0}}, {"macs_share": 1.0}
        manifest = student.manifest.model_copy(update={"metrics": speed, "facts": share})
        return dict.fromkeys(("embed", "prune"), replace(student, manifest=manifest))

    monkeypatch.setattr(shrinking, "run_recipe", run)
    wish = Wish(str(photos), target_latency="0.5x", backend="onnxruntime", minutes=1.0)
    shrink(str(student.path), tmp_path / "out", wish)
    (trained,) = (table for table in asked[-1].stages if table.name == "recover")
    assert trained.config["optimizer"] == {"steps": 20, "batch": 64, "lr": 1e-3}
