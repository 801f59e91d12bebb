"""Images alone are placed among a user's own sentences, which the teacher embedded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clip_world import CAPTIONS, write_squares, write_teacher
from conftest import Outcome
from PIL import Image
from safetensors.torch import load_file, save_file

from mmcompress.artifact import Artifact
from mmcompress.compress.teacher import load_teacher
from mmcompress.compress.train.embeddings import load_embeddings
from mmcompress.compress.train.pairs import training_pairs, trimmed
from mmcompress.compress.train.sentences import FILE, read_sentences
from mmcompress.config import DataConfig, TeacherConfig
from mmcompress.distributed import world as group
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.manifest import Kind
from mmcompress.pipeline import standalone
from mmcompress.runtime.tokenize import load_tokenizer, tokenize

Cli = Callable[..., Outcome]
SAID = [f"red {n} and blue {7 - n}" for n in range(8)] + ["a square"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty photos without captions, the same with captions, two lists of sentences, a teacher and its embeddings."""
    folder = tmp_path_factory.mktemp("sentences")
    write_squares(folder)
    (folder / "photos").mkdir()
    for n in range(60):
        Image.new("RGB", (40, 32), (32 * (n // 8), 90, 32 * (n % 8))).save(folder / "photos" / f"{n:02d}.png")
    (folder / "said.txt").write_text("\n".join([*SAID, "", SAID[0]]))
    (folder / "other.txt").write_text("\n".join(CAPTIONS[:5]))
    write_teacher(folder / "teacher")
    standalone.embed(folder / "e", given(folder, "said"))
    return folder


def given(folder: Path, said: str | None, data: str = "photos") -> dict[str, object]:
    teacher = {"teacher.source": str(folder / "teacher"), "data.train": str(folder / data), "batch": 16, "views": 2}
    return teacher | ({} if said is None else {"sentences": str(folder / f"{said}.txt")})


def few(folder: Path) -> dict[str, object]:
    return {
        "teacher.source": str(folder / "teacher"),
        "data.train": str(folder / "photos"),
        "student.source": "inherit:0.5",
        "student.fit": 32,
        "optimizer.steps": 40,
        "optimizer.batch": 20,
        "device": "cpu",
    }


def test_the_teacher_embeds_each_sentence_once_and_they_are_the_anchors(world: Path) -> None:
    made = Artifact.open(world / "e")
    found = read_sentences(made.path)
    assert found is not None and list(found.said) == SAID and made.manifest.facts["sentences"] == len(SAID)
    teacher = load_teacher(TeacherConfig(source=str(world / "teacher")), CPU)
    expected = teacher.encode_text(SAID)
    torch.testing.assert_close(found.texts.float(), expected, atol=1e-3, rtol=0)
    embeddings = load_embeddings(made)
    torch.testing.assert_close(embeddings.anchors(100, CPU)[1], found.texts.float())
    assert torch.equal(embeddings.anchors(2, CPU)[1], found.texts[[0, -1]].float())


def test_an_image_is_shown_beside_a_sentence_with_what_the_teacher_makes_of_it(world: Path, tmp_path: Path) -> None:
    student = standalone.convert(str(world / "teacher"), tmp_path / "c")
    embeddings, data = load_embeddings(Artifact.open(world / "e")), DataConfig(train=str(world / "photos"))
    text = student.tokenizer
    assert text is not None and student.model is not None
    rows = trimmed(tokenize(load_tokenizer(student.file(text.file)), SAID, text), student.model.text)
    number = {tuple(row.tolist()): n for n, row in enumerate(torch.from_numpy(rows))}
    shown: list[list[int]] = []
    with group("cpu") as here:
        pairs = training_pairs(student, data, batch=30, seed=0, here=here, embeddings=embeddings, sentences=True)
        for epoch in range(3):
            for batch in pairs.stream(epoch, 0):
                assert batch.teacher is not None
                padded = torch.nn.functional.pad(batch.tokens, (0, rows.shape[1] - batch.tokens.shape[1]))
                padded[:, batch.tokens.shape[1] :] = text.pad_token_id
                numbers = [number[tuple(row.tolist())] for row in padded]
                assert torch.equal(batch.teacher[1], embeddings.sentences[0].rows(numbers))
                shown.append(numbers)
        captions = next(training_pairs(student, data, batch=30, seed=0, here=here, embeddings=embeddings).stream(0, 0))
    assert {number for some in shown for number in some} == set(range(len(SAID))) and shown[0] != shown[2]
    assert captions.teacher is not None and captions.tokens.shape != batch.tokens.shape  # sentences that ship


def test_a_student_of_images_alone_comes_nearer_to_its_teacher(world: Path, tmp_path: Path) -> None:
    def distance(student: Artifact) -> float:
        text = student.tokenizer
        assert text is not None and student.model is not None
        model = dual_encoder_from_checkpoint(student.path, student.model)
        with torch.no_grad():
            ours = model.encode_text(torch.from_numpy(tokenize(load_tokenizer(student.file(text.file)), SAID, text)))
        return float((1 - (ours * load_embeddings(Artifact.open(world / "e")).sentences[0].texts).sum(dim=1)).mean())

    begun = standalone.distill(tmp_path / "b", few(world) | {"optimizer.steps": 1}, embeddings=world / "e")
    made = standalone.distill(tmp_path / "s", few(world), embeddings=world / "e")
    assert distance(made) < 0.5 * distance(begun)


def test_other_sentences_are_other_embeddings_of_the_same_images(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = standalone.embed(tmp_path / "e", given(world, None))
    assert load_embeddings(first).sentences == () and FILE not in first.manifest.files
    again = standalone.embed(tmp_path / "e", given(world, "other"))
    assert "1 of 1 chunks are there already" in capsys.readouterr().err
    assert again.digest != first.digest and load_embeddings(again).sentences[0].said == tuple(CAPTIONS[:5])


@pytest.mark.parametrize("term", ["contrastive", "interactive"])
def test_no_sentence_belongs_to_an_image(world: Path, tmp_path: Path, term: str) -> None:
    standalone.embed(tmp_path / "e", given(world, "said", "squares-00000.tar"))
    captions = {"data.train": str(world / "squares-00000.tar"), term: 1.0}
    with pytest.raises(UsageError, match="sentences of one's own belong to no image"):
        standalone.distill(tmp_path / "s", few(world) | captions, embeddings=tmp_path / "e")
    captioned = {"data.train": str(world / "squares-00000.tar"), "sentences": str(world / "said.txt")}
    with pytest.raises(UsageError, match="sentences of one's own belong to no image"):
        standalone.distill(tmp_path / "s", few(world) | captioned | {term: 1.0})
    assert not (tmp_path / "s-embeddings").exists()


def test_a_list_that_is_none_is_refused_before_anything_runs(world: Path, tmp_path: Path) -> None:
    for content, what in ((None, "there is no file"), ("one\n", "has one sentence, 'one'"), ("\n", "no sentences")):
        if content is not None:
            (tmp_path / "list.txt").write_text(content)
        with pytest.raises(UsageError, match=what):
            standalone.embed(tmp_path / "e", given(world, None) | {"sentences": str(tmp_path / "list.txt")})
    assert not (tmp_path / ".e.work").exists()


def test_sentences_that_would_be_ignored_are_refused(world: Path, tmp_path: Path, cli: Cli) -> None:
    said = ("--embed-sentences", world / "said.txt", "--embeddings", world / "e", "--data", world / "photos")
    done = cli("distill", "--student", "inherit:0.5", *said, "--out", tmp_path / "s")
    assert done.code == 2 and "sentences is a key of embed, which has nothing to do here" in done.err


def test_several_teachers_place_images_among_the_same_sentences(world: Path, tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher", 1)
    second = {"teacher.source": str(tmp_path / "teacher")}
    standalone.embed(tmp_path / "b", given(world, "said") | second)
    made = standalone.ensemble([world / "e", tmp_path / "b"], tmp_path / "both")
    of_each = [
        load_embeddings(Artifact.open(p, Kind.EMBEDDINGS)).sentences[0].rows([3]) for p in (world / "e", tmp_path / "b")
    ]
    said, texts = load_embeddings(made).beside(torch.tensor([3.5 / len(SAID)]).numpy())
    assert said == [SAID[3]] and made.manifest.facts["sentences"] == len(SAID)
    torch.testing.assert_close(texts, torch.cat([0.5**0.5 * each for each in of_each], dim=1), atol=1e-3, rtol=0)
    standalone.embed(tmp_path / "c", given(world, "other") | second)
    with pytest.raises(UsageError, match="have other sentences"):
        standalone.ensemble([world / "e", tmp_path / "c"], tmp_path / "none")


def test_a_damaged_file_of_sentences_is_told(world: Path, tmp_path: Path) -> None:
    tensors = load_file(world / "e" / FILE)
    save_file({**tensors, "texts": tensors["texts"][:-1].clone()}, tmp_path / FILE)
    with pytest.raises(CorruptInputError, match="without finite numbers"):
        read_sentences(tmp_path)
    (tmp_path / FILE).write_bytes(b"none")
    with pytest.raises(CorruptInputError, match="cannot be read as sentences"):
        read_sentences(tmp_path)
