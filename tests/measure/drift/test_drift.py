"""The stage on a toy data set, against numpy's own answers."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import clip_benchmark_reference as clip_benchmark
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from toy_model import SIDE, WORDS, make_model

from mmcompress.artifact import Artifact
from mmcompress.config import DataConfig, DriftConfig
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError
from mmcompress.manifest import Graph, Kind
from mmcompress.measure.drift.drift import drift, drift_document
from mmcompress.measure.drift.testset import prompt_embeddings
from mmcompress.measure.sanity import of_few
from mmcompress.runtime import tensorrt
from mmcompress.runtime.backends import BACKENDS, CPU_BACKENDS, open_file
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.session import Session
from mmcompress.twins import FLOAT_MODEL

Make = Callable[..., Artifact]


def report_of(artifacts: list[Artifact], **data: Any) -> dict[str, Any]:
    return drift_document(artifacts, DriftConfig(data=DataConfig(**data))).model_dump(mode="json", by_alias=True)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """24 images of 6 classes, the last class unseen; each with one caption, its label."""
    files: list[tuple[str, bytes]] = []
    for index in range(24):
        label = WORDS[index % 6]
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        path = tmp_path / "one.png"
        Image.fromarray(pixels).save(path)
        about = {"label": label, "seen": index % 6 != 5}
        files += [(f"{index:03d}.png", path.read_bytes()), (f"{index:03d}.txt", label.encode())]
        files += [(f"{index:03d}.json", json.dumps(about).encode())]
    with tarfile.open(tmp_path / "test.tar", "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return tmp_path / "test.tar"


def run_stage(artifacts: tuple[Artifact, ...], folder: Path, **data: Any) -> dict[str, Any]:
    config = DriftConfig(data=DataConfig(**data), gallery=3)
    drift(cast(Any, SimpleNamespace(config=config, gathered=artifacts, draft=SimpleNamespace(path=folder))))
    report: dict[str, Any] = json.loads((folder / "drift.json").read_text())
    return report


def test_engines_are_measured_like_graphs(
    make_artifact: Make, shard: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is a stand-in: its file is an ONNX graph, and what opens engines opens that."""
    graphs = make_artifact("graphs", precisions=("fp32",))
    facts = {"backend": "tensorrt-rtx"}
    engine = make_artifact("engine", make_model(1), kind=Kind.ENGINE, targets=("sm89",), facts=facts)
    asked = ("drift", graphs.path, engine.path, "--data", shard, "--out", tmp_path / "drift")

    def no_gpu(backend: str) -> None:
        raise MissingRequirementError("there is no GPU", "get one")

    monkeypatch.setattr(tensorrt, "this_machine", no_gpu)
    refused = cli(*asked)
    assert refused.code == 3 and "error: there is no GPU" in refused.err and not (tmp_path / "drift").exists()
    monkeypatch.setattr(tensorrt, "built_for_this_gpu", lambda artifact, graphs, backend: list(graphs))
    monkeypatch.setattr(tensorrt, "open_engine", lambda artifact, graph, _: opened(artifact, graph))
    assert cli(*asked).code == 0
    rows = json.loads((tmp_path / "drift" / "drift.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["graphs", "engine"] and rows[1]["previous"]["cosine_mean"] < 0.9


def opened(artifact: Artifact, graph: Graph) -> Session:
    return open_file(artifact.file(graph.file), graph, "onnxruntime", threads=1)


def test_the_stage_measures_every_row(make_artifact: Make, shard: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join([*WORDS, "", "red"]))
    artifacts = (
        make_artifact("teacher", make_model(1, dim=20)),
        make_artifact("student", facts={FLOAT_MODEL: "student"}),
        make_artifact("int8", precisions=("int8",), facts={FLOAT_MODEL: "student"}),
    )
    report = run_stage(artifacts, tmp_path, test=str(shard), labels=str(labels))
    assert report["backend"] == "openvino"
    assert [row["row"] for row in report["rows"]] == ["teacher", "student", "int8"]
    teacher, student, int8 = report["rows"]
    assert (teacher["images"], teacher["candidates"], teacher["unseen_images"]) == (20, 6, 4)
    assert teacher["metrics"]["cosine_mean"] == pytest.approx(1)
    assert teacher["metrics"]["flip_rate"] == 0
    assert student["metrics"]["cosine_mean"] is None
    assert student["metrics"]["top1"] == student["metrics"]["i2t_r1"]
    assert student["int8_against_fp32"] is None
    against = int8["int8_against_fp32"]
    assert against["row"] == "student"
    assert 0.99 < against["cosine_mean"] < 1
    assert against["text_cosine_mean"] == pytest.approx(1)
    assert against["r10_drop"] == student["metrics"]["i2t_r10"] - int8["metrics"]["i2t_r10"]
    low, high = student["metrics"]["ci95"]["i2t_r1"]
    assert low <= student["metrics"]["i2t_r1"] <= high

    model, preprocessing = make_model(), artifacts[1].manifest.preprocessing
    assert preprocessing is not None
    from mmcompress.data.batches import batches
    from mmcompress.data.preprocess import normalize

    [batch] = batches(str(shard), preprocessing, batch=64)
    texts = model.texts(np.array([[0, 4 + i, 2, 1, 1, 1] for i in range(6)]))
    best = (model.images(normalize(batch.pixels, preprocessing)) @ texts.T).argmax(axis=1)
    right = best == np.arange(24) % 6
    seen = np.arange(24) % 6 != 5
    assert student["metrics"]["top1"] == right[seen].mean()
    assert student["unseen"]["top1"] == right[~seen].mean()
    assert student["metrics"]["mean_per_class_recall"] == pytest.approx(
        np.mean([right[np.arange(24) % 6 == label].mean() for label in range(5)])
    )

    reference, other = make_model(1, dim=20), model
    pixels = normalize(batch.pixels, preprocessing)
    tokens = np.array([[0, 4 + i, 2, 1, 1, 1] for i in range(6)])
    was = (reference.images(pixels) @ reference.texts(tokens).T).argmax(axis=1)[seen]
    truth, now = (np.arange(24) % 6)[seen], best[seen]
    moved = student["metrics"]
    assert moved["flip_rate"] == (was != now).mean()
    assert moved["flips_gained"] == ((was != truth) & (now == truth)).mean()
    assert moved["flips_lost"] == ((was == truth) & (now != truth)).mean()
    assert moved["old_index"] is None and student["cosine_histogram"] is None  # 20 dimensions against 16
    assert 0 <= moved["ece"] <= 1 and moved["margin_mean"] > 0

    index = other.texts(tokens)  # the student's, which INT8 differs from by little
    assert int8["previous"]["row"] == "student" and int8["previous"]["cosine_mean"] == against["cosine_mean"]
    assert int8["previous"]["r10_change"]["i2t"] == -against["r10_drop"]
    assert student["previous"]["cosine_mean"] is None and teacher["previous"] is None
    assert index.shape == (6, 16)


def test_int8_is_held_against_its_own_fp32_and_no_other(make_artifact: Make, shard: Path) -> None:
    own = make_artifact("own", facts={FLOAT_MODEL: "a"})
    other = make_artifact("other", make_model(1), facts={FLOAT_MODEL: "b"})
    int8 = make_artifact("int8", precisions=("int8",), facts={FLOAT_MODEL: "a"})
    unknown = make_artifact("unknown", precisions=("int8",))
    rows = report_of([own, other, int8, unknown], test=str(shard))["rows"]
    assert rows[2]["int8_against_fp32"]["row"] == "own", "not the FP32 row that stands right before it"
    assert rows[2]["int8_against_fp32"]["flip_rate"] == rows[2]["metrics"]["flip_rate"]
    assert rows[3]["int8_against_fp32"] is None, "nothing says what it was quantized from"
    assert report_of([other, int8], test=str(shard))["rows"][1]["int8_against_fp32"] is None


def test_fp8_is_held_against_its_own_fp32_too(
    make_artifact: Make, shard: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No CPU runs FP8, so here the CPU runtimes are told that they do."""
    for name in CPU_BACKENDS:
        monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], order=(("fp8", "float"), ("fp32", "float"))))
    own = make_artifact("own", facts={FLOAT_MODEL: "a"})
    other = make_artifact("other", make_model(1), facts={FLOAT_MODEL: "b"})
    fp8 = make_artifact("fp8", make_model(2), precisions=("fp8",), facts={FLOAT_MODEL: "a"})
    rows = report_of([own, other, fp8], test=str(shard))["rows"]
    assert rows[2]["precision"] == "fp8" and rows[2]["int8_against_fp32"]["row"] == "own"
    assert rows[2]["int8_against_fp32"]["flip_rate"] == rows[2]["metrics"]["flip_rate"] > 0
    assert report_of([other, fp8], test=str(shard))["rows"][1]["int8_against_fp32"] is None
    assert "what FP8 alone costs is not measured" in " ".join(capsys.readouterr().err.split())


def test_what_few_images_and_texts_cannot_say_is_said(
    make_artifact: Make, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(WORDS))
    report_of([make_artifact()], test=str(shard), labels=str(labels))
    said = " ".join(capsys.readouterr().err.split())
    assert f"R@10 is 100% of any model that chooses among {len(WORDS)} texts" in said and "say little" not in said
    assert of_few(3, 200) == [
        "R@10 is 100% of any model that chooses among 3 images",
        "3 images say little, whatever their intervals are",
    ]
    assert of_few(20, 11) == []


@pytest.mark.parametrize(
    ("colours", "captions", "said"),
    [
        (("red",), ("red",), "1 images, and less"),
        (("red", "red"), ("red", "a red circle"), "2 images, and less"),
        (("red", "blue"), ("red", "red"), "2 texts, and less"),
        (("red",), (), "1 images, and less"),
        (("red", "red"), (), "2 images, and less"),
    ],
)
def test_a_test_set_that_any_model_answers_alike_is_refused(
    make_artifact: Make, tmp_path: Path, colours: tuple[str, ...], captions: tuple[str, ...], said: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number, colour in enumerate(colours):
        Image.new("RGB", (SIDE, SIDE), colour).save(data / f"{number}.png")
    if captions:
        lines = ["image\tcaption", *(f"{number}.png\t{caption}" for number, caption in enumerate(captions))]
        (data / "captions.tsv").write_text("\n".join(lines))
    with pytest.raises(UsageError, match=f"data has {said} than two different ones: any model answers them alike"):
        report_of([make_artifact()], test=str(data))


def test_the_old_index_answers_the_new_models_queries(make_artifact: Make, shard: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(WORDS))
    artifacts = [make_artifact("old", make_model(0)), make_artifact("new", make_model(3))]
    old, new = report_of(artifacts, test=str(shard), labels=str(labels))["rows"]
    assert old["metrics"]["old_index"] is None and old["metrics"]["r10_change"] is None
    found = new["metrics"]["old_index"]
    vectors = []
    for artifact in artifacts:
        with Encoder.open(artifact, "openvino") as encoder:
            from mmcompress.data.batches import batches

            [batch] = batches(str(shard), encoder.preprocessing, batch=64)
            vectors.append((encoder.pixels(batch.pixels), encoder.texts(WORDS)))
    seen = np.arange(24) % 6 != 5
    scores = vectors[1][0][seen] @ vectors[0][1].T
    truth = (np.arange(24) % 6)[seen]
    order = np.argsort(-scores, axis=1)
    for k in (1, 5):
        assert found[f"i2t_r{k}"] == (order[:, :k] == truth[:, None]).any(axis=1).mean()
    queries = vectors[1][1][:5] @ vectors[0][0][seen].T
    assert found["t2i_r1"] == (truth[queries.argmax(axis=1)] == np.arange(5)).mean()
    low, high = new["metrics"]["ci95"]["old_index_i2t_r1"]
    assert low <= found["i2t_r1"] <= high
    assert sum(new["cosine_histogram"]["counts"]) == 20


def test_rows_with_one_text_tower_embed_texts_once(
    make_artifact: Make, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = [make_artifact(name, make_model(seed)) for name, seed in (("a", 0), ("b", 0), ("c", 3), ("d", 0))]
    alone = [report_of([artifacts[0], one], test=str(shard))["rows"][1]["metrics"] for one in artifacts[1:]]
    embedded: list[str] = []
    texts = Encoder.texts

    def counted(encoder: Encoder, given: Sequence[str]) -> NDArray[np.float32]:
        embedded.append(encoder.artifact.path.name)
        return texts(encoder, given)

    monkeypatch.setattr(Encoder, "texts", counted)
    rows = report_of(artifacts, test=str(shard))["rows"]
    assert embedded == ["a", "c", "d"]
    assert [row["metrics"] for row in rows[1:]] == alone


def test_the_gallery_shows_what_flipped(
    make_artifact: Make, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(WORDS))
    artifacts = (make_artifact("old", make_model(0)), make_artifact("new", make_model(3)))
    shown = run_stage(artifacts, tmp_path, test=str(shard), labels=str(labels))["gallery"]
    assert [entry["file"] for entry in shown] == [f"gallery/{i:03d}.webp" for i in range(3)]
    for entry in shown:
        assert entry["row"] == "new" and entry["teacher"]["text"] != entry["answer"]["text"]
        number = int(entry["key"].rpartition("/")[2])
        assert entry["truth"] == [WORDS[number % 6]]
        with Image.open(tmp_path / entry["file"]) as image:
            assert image.format == "WEBP" and image.size == (SIDE, SIDE)
        assert entry["teacher"]["map"] is None and entry["answer"]["map"] is None  # 24 images pay for no map
    monkeypatch.setattr("mmcompress.measure.drift.gallery.PASSES", 12)
    shown = run_stage(artifacts, tmp_path, test=str(shard), labels=str(labels))["gallery"]
    mapped = [entry for entry in shown if entry["teacher"]["map"]]
    assert len(mapped) == 2 and shown[0] in mapped and shown[-1] in mapped
    pictures = [(tmp_path / entry[who]["map"]).read_bytes() for entry in mapped for who in ("teacher", "answer")]
    assert len({*pictures}) == len(pictures)
    twin = make_artifact("twin", make_model(0))
    assert run_stage((artifacts[0], twin), tmp_path, test=str(shard), labels=str(labels))["gallery"] == []


def test_templates_are_averaged_as_in_clip_benchmark(make_artifact: Make, tmp_path: Path, shard: Path) -> None:
    templates = ["{c}", "red {c}", "a {} circle"]
    with Encoder.open(make_artifact(), "onnxruntime") as encoder:
        found = prompt_embeddings(encoder, WORDS, templates)
        texts = [[t.replace("{c}", word).replace("{}", word) for t in templates] for word in WORDS]
        prompts = np.stack([encoder.texts(group) for group in texts])
    np.testing.assert_allclose(found, clip_benchmark.zero_shot_weights(prompts), atol=1e-6)
    (tmp_path / "templates.txt").write_text("{c}\nred {c}\n")
    (tmp_path / "labels.txt").write_text("\n".join(WORDS))
    data = {"test": str(shard), "labels": str(tmp_path / "labels.txt")}
    plain = report_of([make_artifact("plain")], **data)
    shaped = report_of([make_artifact("shaped")], **data, templates=str(tmp_path / "templates.txt"))
    assert plain["rows"][0]["metrics"]["margin_mean"] != shaped["rows"][0]["metrics"]["margin_mean"]


def test_a_folder_of_classes_is_a_test_set(make_artifact: Make, tmp_path: Path) -> None:
    for index in range(12):
        folder = tmp_path / "set" / WORDS[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    [row] = report_of([make_artifact()], test=str(tmp_path / "set"))["rows"]
    assert (row["images"], row["candidates"]) == (12, 3)
    assert row["metrics"]["top1"] is not None and row["metrics"]["top5"] is None


def test_captions_are_the_candidates_without_labels(make_artifact: Make, shard: Path) -> None:
    config = DriftConfig(data=DataConfig(test=str(shard)), backend="onnxruntime")
    report = drift_document([make_artifact()], config).model_dump(mode="json", by_alias=True)
    [row] = report["rows"]
    assert row["candidates"] == 24
    assert row["metrics"]["top1"] is None
    assert report["backend"] == "onnxruntime"


def test_wrong_labels_and_no_data_are_named(make_artifact: Make, shard: Path, tmp_path: Path) -> None:
    artifact = make_artifact()
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("elephant\ngiraffe\n")
    with pytest.raises(UsageError, match=r"no image of .* has a label that is in .*wrong.txt") as caught:
        report_of([artifact], test=str(shard), labels=str(wrong))
    assert "'red'" in caught.value.hint
    wrong.write_text("\n \n")
    with pytest.raises(UsageError, match=r"wrong.txt lists no labels"):
        report_of([artifact], test=str(shard), labels=str(wrong))
    wrong.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptInputError, match=r"wrong.txt is no text file"):
        report_of([artifact], test=str(shard), labels=str(wrong))
    with pytest.raises(UsageError, match=r"absent.txt"):
        report_of([artifact], test=str(shard), labels=str(tmp_path / "absent.txt"))
    with pytest.raises(UsageError, match=r"data.test is not set"):
        report_of([artifact])
    with pytest.raises(UsageError, match="there is no artifact"):
        report_of([], test=str(shard))
    (tmp_path / "templates.txt").write_text("a photo\n")
    (tmp_path / "labels.txt").write_text("\n".join(WORDS))
    given = {"test": str(shard), "templates": str(tmp_path / "templates.txt")}
    with pytest.raises(UsageError, match=r"the template 'a photo' has no place for the label") as caught:
        report_of([artifact], **given, labels=str(tmp_path / "labels.txt"))
    assert "{c}" in caught.value.hint and caught.value.exit_code == 2
    with pytest.raises(UsageError, match=r"data.templates is .*templates.txt, and .* has captions, not classes"):
        report_of([artifact], **given)
