"""What is said and would say nothing is refused, before anything runs: no option is taken and ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_run import make_run

Cli = Callable[..., Any]
TEACHER = ("--teacher", "demo:teacher", "--data", "demo:val")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("embed", *TEACHER, "--augment", "drawing"), "augment makes the views behind the first one"),
        (("distill", *TEACHER, "--student", "inherit:0.5", "--student-image-size", "32"), "image_size is of presets"),
        (("distill", *TEACHER, "--student", "inherit:0.5", "--student-tokenizer", "x"), "tokenizer is of presets"),
        (
            ("distill", *TEACHER, "--student", "vit-t16", "--relational", "0", "--anchors", "9"),
            "anchors is of the relations, whose weight is 0",
        ),
        (
            ("distill", *TEACHER, "--student", "vit-t16", "--validation", "demo:val"),
            "--validation is what --watch-steps measures on",
        ),
        (
            ("distill", *TEACHER, "--student", "vit-t16", "--watch-patience", "3"),
            "patience is of measurements, and steps are not given",
        ),
        (("prune", "demo:teacher", "--data", "demo:val", "--backend", "openvino"), "backend is of target_latency"),
        (("prune", "demo:teacher", "--data", "demo:val", "--threads", "2"), "threads is of target_latency"),
        (("prune", "demo:teacher", "--data", "demo:val", "--anchors", "2"), "anchors is of the importance taylor"),
        (("prune", "demo:teacher", "--data", "demo:val", "--width-multiple", "2"), "width_multiple is of width"),
        (
            ("quantize", "demo:teacher", "--data", "demo:val", "--method", "mse", "--percentile", "99"),
            "percentile is of the method percentile, not of mse",
        ),
        (
            ("quantize", "demo:teacher", "--data", "demo:val", "--ranges", "r", "--smooth", "0.5"),
            "smooth says how ranges are found, and --ranges gives them",
        ),
        (("bench", "demo:teacher", "--backends", "tensorrt-rtx", "--threads", "2"), "threads is of CPU runtimes"),
        (
            ("verdict", "demo:teacher", "--data", "demo:val", "--backend", "tensorrt", "--threads", "2"),
            "threads is of CPU runtimes",
        ),
        (("export", "demo:teacher", "--convert-nothing"), "No such option"),
        (("shrink", "demo:teacher", "--data", "demo:val", "--minutes", "1"), "nothing is pruned"),
        (
            ("shrink", "demo:teacher", "--data", "demo:val", "--set", "data.train=demo:train"),
            "--set data.train: shrink gives every stage a part",
        ),
        (("quantize", "demo:teacher", "--data", "demo:val", "--set", "data.test=x"), "data.test would be ignored"),
        (("embed", *TEACHER, "--set", "data.validation=x"), "embed read data.train"),
        (
            ("prune", "demo:teacher", "--data", "demo:val", "--set", "embed.data.test=x"),
            "embed.data.test would be ignored",
        ),
        (("drift", "demo:teacher", "--data", "demo:test", "--set", "data.train=x"), "data.train would be ignored"),
        (
            ("quantize", "demo:teacher", "--data", "demo:val", "--set", "teacher.source=vit-b32"),
            "--set teacher.source: the command's own argument says that",
        ),
        (("distill", *TEACHER, "--student", "vit-t16", "--budget", "5m"), "--budget is a pilot's"),
        (
            ("distill", *TEACHER, "--target-latency", "1ms", "--backend", "tensorrt"),
            "mmcompress distill: backend is 'tensorrt': Input should be 'openvino' or 'onnxruntime'",
        ),
        (
            ("distill", *TEACHER, "--student", "mnv4-s", "--student-image-size", "1000000000"),
            "image_size 1000000000 is no side of an image, which has 1 to 4096 pixels",
        ),
        (
            (
                *("distill", "--data", "demo:val", "--validation", "demo:val", "--student", "inherit:0.5"),
                *("--pilot", "demo:teacher,vit-b32", "--optimizer-steps", "9"),
            ),
            "a pilot chooses its steps within --budget, and optimizer.steps was given",
        ),
        (("embed", "--teacher", "demo:teacher", "--data", "part:0-0/100000:demo:val"), "has no samples"),
    ],
)
def test_refused(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], what: str) -> None:
    done = cli(*arguments, "--out", tmp_path / "out")
    assert done.code == 2 and what in done.err, done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (("--views", "2"), "views is the guide's own"),
        (("--embed-dim", "64"), "embed_dim is the guide's own"),
        (("--contrastive", "0", "--smoothing", "0.1"), "smoothing is of the contrastive loss"),
        (("--set", "student.tokenizer=x", "--vocab", "900"), "vocab is of a trained tokenizer"),
    ],
)
def test_train_refuses_what_its_guide_decides(cli: Cli, tmp_path: Path, overrides: tuple[str, ...], what: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[data]\ntrain = "demo:val"\n[teacher]\nsource = "demo:teacher"\n[student]\nsource = "vit-t8-64"\n'
        '[[stage]]\nrun = "embed"\n[[stage]]\nrun = "train"\n'
    )
    done = cli("train", recipe, "--out", tmp_path / "out", *overrides)
    assert done.code == 2 and what in done.err, done.err
    assert list(tmp_path.iterdir()) == [recipe]


def test_keys_of_a_stage_that_does_not_run_are_refused(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path)
    done = cli("bench", tmp_path / "teacher", "--teacher-trust-remote-code", "--out", tmp_path / "b")
    assert done.code == 2 and "teacher.trust_remote_code is a key of convert, which has nothing to do here" in done.err


def test_what_is_only_read_is_not_measured(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run)
    assert cli("report", run).code == 0
    both = (run / "report", run / "report")
    assert cli("compare", *both).code == 0
    done = cli("compare", *both, "--threads", "1")
    assert done.code == 2 and "--threads says how to measure" in done.err
    done = cli("check", run / "report", "--baseline", run / "report")
    assert done.code == 2 and "says what changes are against, and no limit is given" in done.err
