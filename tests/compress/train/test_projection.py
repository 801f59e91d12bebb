"""A student learns from a teacher of another width, and is left in its own space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clip_world import CAPTIONS, write_squares, write_teacher
from conftest import Outcome
from safetensors import safe_open

from mmcompress.artifact import Artifact
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.compress.train.projection import nearest, principal_axes, projected
from mmcompress.errors import UsageError
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.pipeline import standalone
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embeddings of two teachers of 32 dimensions, both as one of 64, and the first as a checkpoint."""
    folder = tmp_path_factory.mktemp("projection")
    data = write_squares(folder)
    for name, seed in (("a", 0), ("b", 1)):
        teacher = write_teacher(folder / f"teacher-{name}", seed)
        standalone.embed(folder / f"e-{name}", {"teacher.source": str(teacher), "data.train": str(data), "batch": 16})
    standalone.ensemble([folder / "e-a", folder / "e-b"], folder / "both")
    standalone.convert(str(folder / "teacher-a"), folder / "checkpoint")
    return folder


def few(world: Path, steps: int = 3, **more: object) -> dict[str, object]:
    return {
        "teacher.source": str(world / "teacher-a"),
        "data.train": str(world / "squares-00000.tar"),
        "optimizer.steps": steps,
        "optimizer.batch": 20,
        "device": "cpu",
        **more,
    }


SMALL = {"student.source": "vit-t8-64", "student.image_size": 32}


@pytest.mark.parametrize(("own", "theirs"), [(5, 9), (9, 5)])
def test_a_rotated_space_is_found_again(own: int, theirs: int) -> None:
    noise = torch.Generator().manual_seed(0)
    wide = torch.linalg.qr(torch.randn(9, 9, generator=noise, dtype=torch.float64)).Q
    turn = wide[:theirs, :own]
    turn = torch.linalg.qr(turn).Q if own < theirs else torch.linalg.qr(turn.T).Q.T
    students = torch.randn(50, own, generator=noise, dtype=torch.float64)
    found = nearest((students @ turn.T).T @ students)
    assert found.shape == (theirs, own)
    if own < theirs:
        torch.testing.assert_close(found, turn)
        seen, _ = projected((students, students), found)
        expected = torch.nn.functional.normalize(students, dim=1)
        torch.testing.assert_close(seen @ seen.T, expected @ expected.T)
    else:
        torch.testing.assert_close(found @ found.T, torch.eye(theirs, dtype=torch.float64))


def test_a_new_student_gets_the_axes_that_keep_most_of_its_teacher() -> None:
    noise = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, 6, generator=noise) * torch.arange(1.0, 7) for n in (40, 70))
    axes = principal_axes((images, texts), 3)
    torch.testing.assert_close(axes.T @ axes, torch.eye(3))
    both = torch.cat([images / 40**0.5, texts / 70**0.5])
    expected = torch.linalg.svd(both, full_matrices=False).Vh[:3].T
    torch.testing.assert_close((axes @ axes.T), expected @ expected.T, atol=1e-5, rtol=1e-4)


def test_a_narrow_student_answers_as_its_teacher_in_a_space_of_its_own(world: Path, tmp_path: Path) -> None:
    def distance(student: Artifact) -> float:
        """Between the cosines of all texts, which no space changes."""
        assert student.model is not None and student.tokenizer is not None
        model = dual_encoder_from_checkpoint(student.path, student.model)
        tokens = tokenize(load_tokenizer(student.file(student.tokenizer.file)), CAPTIONS, student.tokenizer)
        with torch.no_grad():
            texts = model.encode_text(torch.from_numpy(tokens))
        anchors = load_embeddings(Artifact.open(world / "e-a"))
        samples = [anchors.stores[0].spread(60)[1].values]
        return float((texts @ texts.T - samples[0] @ samples[0].T).abs().mean())

    made = {
        steps: standalone.distill(
            tmp_path / f"s{steps}", few(world, steps, **SMALL, embed_dim=16), embeddings=world / "e-a"
        )
        for steps in (1, 60)
    }
    assert made[60].model is not None and made[60].model.embed_dim == 16
    assert distance(made[60]) < 0.5 * distance(made[1])
    with safe_open(made[60].file("model.safetensors"), "pt") as file:
        assert not [name for name in file.keys() if name.startswith("projection")]  # noqa: SIM118


def test_a_checkpoint_learns_from_a_wider_teacher_where_it_is_asked_for(world: Path, tmp_path: Path, cli: Cli) -> None:
    said = ("--embeddings", world / "both", "--from", world / "checkpoint", "--data", world / "squares-00000.tar")
    told = (*said, "--teacher", world / "teacher-a", "--out", tmp_path / "s", "--device", "cpu")
    steps = ("--optimizer-steps", 3, "--optimizer-batch", 20)
    refused = cli("distill", *told, *steps)
    assert refused.code == 2 and "--project" in refused.err
    done = cli("distill", *told, *steps, "--project")
    assert done.code == 0, done.err
    assert Artifact.open(tmp_path / "s").model.embed_dim == 32


def test_a_student_that_inherits_stays_as_wide_as_its_teacher_beside_another(world: Path, tmp_path: Path) -> None:
    inherits = few(world, **{"student.source": "inherit:0.5"}, project=True)
    made = standalone.distill(tmp_path / "s", inherits, embeddings=world / "both")
    assert made.model is not None and made.model.embed_dim == 32


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({**SMALL, "project": True}, "nothing to project: student and teacher both embed into 32 dimensions"),
        ({**SMALL, "embed_dim": 16, "text": "keep"}, "embed_dim says another width"),
        ({**SMALL, "embed_dim": 16, "affinity": 0.0}, "held in its own space by affinity or contrastive"),
        ({"student.source": "inherit:0.5", "embed_dim": 16}, "embed_dim is of presets"),
        ({**SMALL, "embed_dim": 48}, "embed_dim is 48, and what the student learns from has 32 dimensions"),
    ],
)
def test_a_projection_that_cannot_be_is_refused(
    world: Path, tmp_path: Path, given: dict[str, object], what: str
) -> None:
    with pytest.raises(UsageError, match=what):
        standalone.distill(tmp_path / "s", few(world, **given), embeddings=world / "e-a")


def test_a_checkpoint_has_its_own_width_and_a_kept_tower_the_teachers(world: Path, tmp_path: Path) -> None:
    start, both = world / "checkpoint", world / "both"
    with pytest.raises(UsageError, match="embed_dim is of a new student"):
        standalone.distill(tmp_path / "s", few(world, embed_dim=16), embeddings=both, checkpoint=start)
    with pytest.raises(UsageError, match="the text tower that is kept is of 64 dimensions, and the student of 32"):
        standalone.distill(tmp_path / "s", few(world, project=True, text="keep"), embeddings=both, checkpoint=start)
