"""What a student has of its teacher besides embeddings: the scale of the logits, and how images are prepared."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from clip_world import write_squares, write_teacher

from mmcompress.compress.train.embed import embed
from mmcompress.errors import UsageError
from mmcompress.export.pixels import image_processing
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.pipeline.recipe import load_recipe
from mmcompress.pipeline.run import run_recipe

TEACHER = """
import torch
from torch.nn.functional import normalize
from mmcompress.compress.teacher import Teacher
from mmcompress.manifest import Preprocessing
def build():
    rule = Preprocessing(size=16, resize=18, interpolation="box", mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
    image = lambda x: normalize(x.flatten(1)[:, ::24], dim=-1)
    text = lambda texts: normalize(torch.tensor([[1.0 + len(t) + i for i in range(32)] for t in texts]), dim=-1)
    return Teacher(image, text, rule, 32, logit_scale=100.0, logit_bias=-10.0)
"""
RECIPE = """
[data]
train = "{data}"
[teacher]
source = "{teacher}"
[student]
source = "vit-t8-64"
tokenizer = "{tokenizer}"
[[stage]]
run = "embed"
batch = 16
[[stage]]
run = "distill"
optimizer = {{ steps = 2, batch = 20, lr = 1e-3 }}
"""


def test_a_student_has_its_teachers_pixels_and_scale(tmp_path: Path) -> None:
    """Not those of the folder that lends its tokenizer, which are bicubic, halves and 14.3."""
    data, tokenizer = write_squares(tmp_path), write_teacher(tmp_path / "tokenizer")
    (tmp_path / "mine.py").write_text(TEACHER)
    stated = {"data": data, "teacher": f"{tmp_path}/mine.py:build", "tokenizer": tokenizer}
    (tmp_path / "recipe.toml").write_text(RECIPE.format(**stated))
    made = run_recipe(load_recipe(tmp_path / "recipe.toml"), tmp_path / "run")
    assert made["embed"].manifest.facts["logit_scale"] == 100 and made["embed"].manifest.facts["logit_bias"] == -10
    rule = made["distill"].manifest.preprocessing
    assert rule is not None and rule == image_processing(made["distill"].path)
    assert (rule.mean, rule.std, rule.interpolation) == ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1), "box")
    assert rule.resize == rule.size * 18 / 16
    model = dual_encoder_from_checkpoint(made["distill"].path, made["distill"].model)
    assert math.exp(float(model.logit_scale.detach())) == pytest.approx(100, rel=1e-6)


def test_embeddings_that_do_not_say_how_images_were_prepared_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they were made before their manifest said so."""

    def silent(job: object) -> None:
        embed(job)  # type: ignore[arg-type]
        job.draft.preprocessing = None  # type: ignore[attr-defined]

    monkeypatch.setattr("mmcompress.compress.train.embed.embed", silent)
    data, teacher = write_squares(tmp_path), write_teacher(tmp_path / "teacher")
    stated = {"data": data, "teacher": teacher, "student": "vit-t8-64", "tokenizer": teacher}
    recipe = RECIPE.format(**stated).replace(f'tokenizer = "{teacher}"', "")
    (tmp_path / "recipe.toml").write_text(recipe)
    with pytest.raises(UsageError, match="does not say how the teacher's images were prepared") as caught:
        run_recipe(load_recipe(tmp_path / "recipe.toml"), tmp_path / "run")
    assert caught.value.hint == "embed them again"


def test_a_teacher_without_a_scale_has_no_logits_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, tokenizer = write_squares(tmp_path), write_teacher(tmp_path / "tokenizer")
    (tmp_path / "mine.py").write_text(TEACHER.replace(", logit_scale=100.0, logit_bias=-10.0", ""))
    stated = {"data": data, "teacher": f"{tmp_path}/mine.py:build", "tokenizer": tokenizer}
    (tmp_path / "recipe.toml").write_text(RECIPE.format(**stated))
    run_recipe(load_recipe(tmp_path / "recipe.toml"), tmp_path / "run")
    assert "without affinity, which compares logits" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="affinity compares logits"):
        run_recipe(load_recipe(tmp_path / "recipe.toml", {"distill.affinity": 2}), tmp_path / "run")
