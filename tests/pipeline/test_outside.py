"""What is part of a key, and what is asked again before a reuse: no change of a model's files is missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from clip_world import write_squares

from mmcompress.compress.earlyteacher import check_same_teacher
from mmcompress.config import DistillConfig, EmbedConfig
from mmcompress.errors import UsageError
from mmcompress.pipeline.converted import teacher_graphs
from mmcompress.pipeline.outside import outside, revisions, still_as_read
from mmcompress.pipeline.standalone import embed

OWN = """import torch
from pathlib import Path
from torch.nn.functional import normalize
from mmcompress.artifact import Preprocessing
from mmcompress.compress.teacher import Teacher
def build():
    a = torch.load(Path(__file__).parent / "deep" / "weights")
    image = lambda x: normalize(x.flatten(1) @ a, dim=-1)
    seeded = lambda s: torch.randn(4, generator=torch.Generator().manual_seed(sum(map(ord, s))))
    text = lambda t: normalize(torch.stack([seeded(s) for s in t]))
    return Teacher(image, text, Preprocessing(size=8, resize=8, mean=(.5,) * 3, std=(.5,) * 3), 4)
"""


def fingerprints(teacher: str, tokenizer: str | None = None) -> dict[str, str]:
    student: dict[str, Any] = {"source": "vit-t16", "tokenizer": tokenizer}
    return outside(DistillConfig.model_validate({"data": {}, "teacher": {"source": teacher}, "student": student}))


def test_a_changed_file_of_a_model_changes_the_key(tmp_path: Path) -> None:
    large = tmp_path / "m" / "model.safetensors"
    large.parent.mkdir()
    size = 80 * 2**20
    with large.open("wb") as stream:
        stream.truncate(size)
    (tmp_path / "m" / "config.json").write_text("{}")
    sources = [str(tmp_path / "m"), f"open_clip:local-dir:{tmp_path / 'm'}", f"open_clip:ViT-B-32/{large}"]
    before = [fingerprints(source)["teacher"] for source in sources]
    assert before == [fingerprints(source)["teacher"] for source in sources] and len({*before}) == 3
    with large.open("r+b") as stream:
        stream.seek(size // 2)
        stream.write(b"1")
    after = [fingerprints(source)["teacher"] for source in sources]
    assert not {*before} & {*after}


def test_a_changed_tokenizer_folder_changes_the_key(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    before = fingerprints("open_clip:ViT-B-32/openai", str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert before != fingerprints("open_clip:ViT-B-32/openai", str(tmp_path))


def test_another_commit_in_the_hubs_cache_is_another_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    built = EmbedConfig.model_validate({"data": {}, "teacher": {"source": "vit-b32"}})
    assert revisions(built) == {}
    cache = tmp_path / "models--openai--clip-vit-base-patch32"
    recorded = {}
    for commit in ("a" * 40, "b" * 40):
        for file, content in ((f"snapshots/{commit}/config.json", "{}"), ("refs/main", commit)):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            (cache / file).write_text(content)
        recorded = recorded or revisions(built)
        assert recorded == {"hub:vit-b32": "a" * 40}
        assert still_as_read(recorded, built) == (commit == "a" * 40)
    (cache / "refs/main").unlink()  # nothing cached: nothing is known to have changed
    assert still_as_read(recorded, built)


def test_weights_that_a_teacher_opened_are_asked_for_before_a_reuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file, weights = write_squares(tmp_path), tmp_path / "own" / "own.py", tmp_path / "own" / "deep" / "weights"
    weights.parent.mkdir(parents=True)
    file.write_text(OWN)
    digests = []
    for seed in (0, 0, 1):
        torch.save(torch.randn(192, 4, generator=torch.Generator().manual_seed(seed)), weights)
        made = embed(tmp_path / "e", {"teacher.source": f"{file}:build", "data.train": str(data)})
        digests.append((made.digest, "reused" in capsys.readouterr().err))
    assert [reused for _, reused in digests] == [False, True, False]
    assert len({digest for digest, _ in digests}) == 2


TOWERS = """import torch
from pathlib import Path
import conv_teacher
from dataclasses import replace
def towers():
    seed = int(torch.from_file(str(Path(__file__).parent / "deep" / "seed"), size=1, dtype=torch.int64))
    return conv_teacher.towers(seed)
def build():
    made = conv_teacher.teacher(conv_teacher.towers(int((Path(__file__).parent / "deep" / "text").read_text())))
    return replace(made, towers=towers)
"""


def test_weights_that_towers_mapped_are_asked_for_before_a_trace_is_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, deep = tmp_path / "own" / "own.py", tmp_path / "own" / "deep"
    deep.mkdir(parents=True)
    file.write_text(TOWERS)
    found = []
    for seed in (0, 0, 1):
        torch.tensor([seed]).numpy().tofile(deep / "seed")
        (deep / "text").write_text(str(seed))
        made = teacher_graphs(f"{file}:build", tmp_path / "g")
        found.append((made.digest, "reused" in capsys.readouterr().err))
    assert [reused for _, reused in found] == [False, True, False]
    assert len({digest for digest, _ in found}) == 2


def test_embeddings_of_a_teacher_whose_weights_changed_are_refused(tmp_path: Path) -> None:
    data, file, weights = write_squares(tmp_path), tmp_path / "own" / "own.py", tmp_path / "own" / "deep" / "weights"
    weights.parent.mkdir(parents=True)
    file.write_text(OWN)
    torch.save(torch.randn(192, 4), weights)
    made = embed(tmp_path / "e", {"teacher.source": f"{file}:build", "data.train": str(data)})
    check_same_teacher(f"{file}:build", made)
    torch.save(torch.randn(192, 4), weights)
    with pytest.raises(UsageError, match=r"has changed since the embeddings .*deep/weights is another one"):
        check_same_teacher(f"{file}:build", made)


def test_a_stage_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    data = write_squares(tmp_path)
    (tmp_path / "own.py").write_text("def build(): return 1\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="returned int"):
        embed(tmp_path / "e", {"teacher.source": f"{tmp_path / 'own.py'}:build", "data.train": str(data)})
    assert [path for path in tmp_path.iterdir() if path.name != ".e.lock"] == before
