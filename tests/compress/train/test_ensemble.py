"""Several teachers as one: their cosines, mixed by their shares, are what the student learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cached import cached
from clip_world import write_squares, write_teacher
from conftest import Outcome
from shards import shard
from torch.nn import functional as F

from mmcompress.artifact import Artifact
from mmcompress.compress.train.embeddings import Embeddings, combined, load_embeddings
from mmcompress.data.batches import listing
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.pipeline import standalone

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty squares, and the embeddings of two teachers of them."""
    folder = tmp_path_factory.mktemp("ensemble")
    data = write_squares(folder)
    for name, seed in (("a", 0), ("b", 1)):
        teacher = write_teacher(folder / f"teacher-{name}", seed)
        given = {"teacher.source": str(teacher), "data.train": str(data), "batch": 16, "views": 2}
        standalone.embed(folder / name, given)
    return folder


def both(world: Path, out: Path, **given: object) -> Artifact:
    return standalone.ensemble([world / "a", world / "b"], out, given)


def looked_up(embeddings: Embeddings, world: Path) -> tuple[torch.Tensor, torch.Tensor]:
    samples = list(listing(str(world / "squares-00000.tar")))
    views = np.arange(60) % 2
    return embeddings.lookup([s.key for s in samples], [s.mark for s in samples], views, [0] * 60)


def test_a_cosine_is_the_mean_of_the_teachers_by_weight_and_temperature(world: Path, tmp_path: Path) -> None:
    made = both(world, tmp_path / "e", weights=[1.0, 3.0], temperatures=[0.01, 0.02])
    images, texts = looked_up(load_embeddings(made), world)
    assert images.shape == texts.shape == (60, 64) and made.manifest.facts["dim"] == 64
    torch.testing.assert_close(images.norm(dim=1), torch.ones(60), atol=1e-3, rtol=0)
    of_each = [looked_up(load_embeddings(Artifact.open(world / name)), world) for name in "ab"]
    logits = sum(w * i @ t.T / tau for (i, t), w, tau in zip(of_each, (0.25, 0.75), (0.01, 0.02), strict=True))
    torch.testing.assert_close(made.manifest.facts["logit_scale"] * images @ texts.T, logits, atol=1e-3, rtol=1e-4)


def test_equal_shares_unless_something_is_said(world: Path, tmp_path: Path) -> None:
    made = both(world, tmp_path / "e")
    scales = [Artifact.open(world / name).manifest.facts["logit_scale"] for name in "ab"]
    assert load_embeddings(made).shares == pytest.approx((0.5, 0.5))
    assert made.manifest.facts["logit_scale"] == pytest.approx(sum(scales) / 2)


def test_averaged_embeddings_stay_as_wide(world: Path, tmp_path: Path) -> None:
    made = both(world, tmp_path / "e", combine="average", weights=[1.0, 3.0])
    images, _ = looked_up(load_embeddings(made), world)
    a, b = (looked_up(load_embeddings(Artifact.open(world / name)), world)[0] for name in "ab")
    torch.testing.assert_close(images, F.normalize(a + 3 * b, dim=1), atol=1e-6, rtol=1e-5)
    anchors, _ = load_embeddings(made).anchors(100, torch.device("cpu"))
    plain = [cached(Artifact.open(world / name))[0][:, 0] for name in "ab"]
    expected = combined(plain, (0.25, 0.75), "average").unique(dim=0)
    torch.testing.assert_close(anchors, expected, atol=1e-6, rtol=1e-5)


def test_files_are_shared_with_the_teachers_own(world: Path, tmp_path: Path) -> None:
    made = both(world, tmp_path / "e")
    (name,) = (name for name in made.manifest.files if name.startswith("1/shards/"))
    assert made.file(name).samefile(world / "b" / name.removeprefix("1/"))


def test_a_student_of_two_teachers_is_as_wide_as_both(world: Path, tmp_path: Path, cli: Cli) -> None:
    both(world, tmp_path / "e")
    few = ("--set", "optimizer.steps=3", "--set", "optimizer.batch=20", "--device", "cpu")
    data = ("--data", world / "squares-00000.tar", "--teacher", world / "teacher-a", "--embeddings", tmp_path / "e")
    preset = ("--student", "vit-t8-64", "--student-image-size", 32)
    done = cli("distill", *data, *preset, *few, "--out", tmp_path / "s")
    assert done.code == 0, done.err
    assert Artifact.open(tmp_path / "s").model.embed_dim == 64
    refused = cli("distill", *data, "--student", "inherit:0.5", *few, "--out", tmp_path / "t")
    assert refused.code == 2 and "embeds into 32 dimensions, and what it learns from has 64" in refused.err
    kept = cli("distill", *data, *preset, "--text", "keep", *few, "--out", tmp_path / "t")
    assert kept.code == 2 and not (tmp_path / "t").exists()


def test_what_does_not_belong_together_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two teachers or more, and there are 1"):
        standalone.ensemble([world / "a"], tmp_path / "e")
    with pytest.raises(UsageError, match="an ensemble is of different teachers") as caught:
        standalone.ensemble([world / "a", world / "a"], tmp_path / "e")
    assert "name each once" in str(caught.value.hint)
    with pytest.raises(UsageError, match="weights has 3 values, and there are 2 teachers"):
        both(world, tmp_path / "e", weights=[1.0, 2.0, 3.0])
    both(world, tmp_path / "two")
    with pytest.raises(UsageError, match="is an ensemble"):
        standalone.ensemble([world / "a", tmp_path / "two"], tmp_path / "e")
    other = {"teacher.source": str(world / "teacher-b"), "data.train": str(world / "squares-00000.tar"), "batch": 16}
    standalone.embed(tmp_path / "one-view", other)
    with pytest.raises(UsageError, match="have other views: 2 and 1"):
        standalone.ensemble([world / "a", tmp_path / "one-view"], tmp_path / "e")
    standalone.embed(tmp_path / "noise", {**other, "data.train": str(shard(tmp_path / "n.tar", 60)), "views": 2})
    with pytest.raises(UsageError, match="have other data"):
        standalone.ensemble([world / "a", tmp_path / "noise"], tmp_path / "e")


def test_anchors_of_other_samples_are_refused(world: Path, tmp_path: Path) -> None:
    """Two teachers that could not read the same images, say."""
    made = load_embeddings(both(world, tmp_path / "e"))
    store = made.stores[1]
    spread = store.spread

    def shifted(count: int) -> object:
        images, texts = spread(count)
        return images._replace(keys=[*images.keys[1:], images.keys[0]]), texts

    object.__setattr__(store, "spread", shifted)
    with pytest.raises(CorruptInputError, match="did not embed the same samples"):
        made.anchors(5, torch.device("cpu"))
