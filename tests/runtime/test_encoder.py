"""The encoder, classify and search on a toy model, against numpy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from toy_model import CONTEXT, DIM, EOS, PAD, SIDE, WORDS, make_model

from mmcompress.artifact import Artifact
from mmcompress.data.preprocess import normalize, to_array
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import TensorSpec
from mmcompress.runtime.answers import classify, labels_in, search
from mmcompress.runtime.encoder import Encoder

Make = Callable[..., Artifact]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, one of them in a subfolder, and three files that are none."""
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / ("more" if index == 4 else "") / f"{index}.png")
    (images / "broken.png").write_bytes((images / "0.png").read_bytes()[:60])
    (images / "text.jpg").write_text("no image")
    (images / "notes.txt").write_text("not looked at")
    return images


def tokens_of(*words: str) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    row = [0, *(4 + WORDS.index(word) for word in words), EOS]
    return np.array([row + [PAD] * (CONTEXT - len(row))])


def test_embeddings_match_numpy(make_artifact: Make, folder: Path) -> None:
    artifact, model = make_artifact(), make_model()
    assert artifact.manifest.preprocessing is not None
    with Encoder.open(artifact.path, threads=1) as encoder:
        assert encoder.backend == "openvino"
        paths = [folder / "0.png", folder / "1.png"]
        pixels = np.stack([to_array(Image.open(path), artifact.manifest.preprocessing) for path in paths])
        expected = model.images(normalize(pixels, artifact.manifest.preprocessing))
        np.testing.assert_allclose(encoder.image_files(paths), expected, atol=1e-6)
        many = np.repeat(normalize(pixels, artifact.manifest.preprocessing), 40, axis=0)
        np.testing.assert_allclose(encoder.images(many), np.repeat(expected, 40, axis=0), atol=1e-6)
        texts = encoder.texts(["red circle", "Blue"])
        np.testing.assert_allclose(texts[0], model.texts(tokens_of("red", "circle"))[0], atol=1e-6)
        np.testing.assert_allclose(texts[1], model.texts(tokens_of("blue"))[0], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
        assert encoder.texts([]).shape == encoder.image_files([]).shape == (0, DIM)


def test_an_attention_mask_is_fed_where_the_graph_wants_one(make_artifact: Make, tmp_path: Path) -> None:
    source = make_artifact()
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["ids", "mask"], ["embedding"]),
    ]
    given = [value(name, TensorProto.INT64, ["n", CONTEXT]) for name in ("input_ids", "attention_mask")]
    graph = helper.make_graph(nodes, "masked", given, [value("embedding", TensorProto.FLOAT, ["n", CONTEXT])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    specs = tuple(TensorSpec(name=one.name, shape=(None, CONTEXT), dtype="int64") for one in given)
    text = next(g for g in source.manifest.graphs if g.tower == "text")
    with Artifact.create(tmp_path / "masked", kind=source.manifest.kind, stage="export", key="") as draft:
        draft.inherit(source, "tokenizer.json")
        onnx.save(proto, draft.path / "text.onnx")
        draft.graphs.append(text.model_copy(update={"file": "text.onnx", "inputs": specs}))
    with Encoder.open(tmp_path / "masked", towers=("text",)) as encoder:
        embedding = encoder.texts(["red"])[0]
    expected = np.array([0, 4, EOS, 0, 0, 0]) / np.sqrt(16 + EOS**2)
    np.testing.assert_allclose(embedding, expected, atol=1e-6)


def test_classify_is_the_softmax_of_scaled_cosines(make_artifact: Make, folder: Path) -> None:
    artifact, model = make_artifact(), make_model()
    assert artifact.manifest.preprocessing is not None
    labels = ["red", "green", "blue"]
    with Encoder.open(artifact) as encoder:
        found = classify(encoder, folder / "2.png", labels)
        templated = classify(encoder, folder / "2.png", labels, template="white {}")
        assert classify(encoder, folder / "2.png", [*labels, "red", "blue"]) == found, "each label once"
    pixels = to_array(Image.open(folder / "2.png"), artifact.manifest.preprocessing)
    image = model.images(normalize(pixels[None], artifact.manifest.preprocessing))[0]
    logits = np.array([20.0 * image @ model.texts(tokens_of(label))[0] for label in labels])
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [label for label, _ in found] == [labels[i] for i in np.argsort(-expected)]
    for label, probability in found:
        assert probability == pytest.approx(expected[labels.index(label)], abs=1e-5)
    assert sum(p for _, p in templated) == pytest.approx(1)
    assert dict(templated) != dict(found)


def test_search_ranks_by_cosine_and_names_what_it_skips(
    make_artifact: Make, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = make_artifact()
    with Encoder.open(artifact) as encoder:
        found = search(encoder, folder, "green circle", top=3)
        paths = sorted(folder.rglob("?.png"))
        scores = encoder.image_files(paths) @ encoder.texts(["green circle"])[0]
    assert [path for path, _ in found] == [paths[i] for i in np.argsort(-scores)[:3]]
    assert [score for _, score in found] == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-6)
    said = "".join(capsys.readouterr().err.split())
    assert "2of7itemscannotberead" in said and "broken.png:" in said and "text.jpg:" in said
    assert "notes.txt" not in said and "images were skipped" not in said


def test_search_holds_the_best_over_several_batches(make_artifact: Make, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(100):
        pixels = np.random.default_rng(index % 40).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")  # some are there twice: the first name is before
    with Encoder.open(make_artifact()) as encoder:
        found = search(encoder, folder, "green circle", top=7)
        held = [search(encoder, folder, "green circle", top=top) for top in (1, 100)]
        paths = sorted(folder.iterdir())
        scores = encoder.image_files(paths) @ encoder.texts(["green circle"])[0]
    assert [path for path, _ in found] == [paths[i] for i in np.argsort(-scores, kind="stable")[:7]]
    assert held[0] == found[:1] and [path for path, _ in held[1][:7]] == [path for path, _ in found]


def test_search_says_once_how_many_images_of_other_formats_it_skips(
    make_artifact: Make, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.gif", "more/B.GIF", "c.tif", "d.bmp", ".hidden.png", ".hidden.gif"):
        Image.new("RGB", (SIDE, SIDE)).save(folder / name)
    with Encoder.open(make_artifact()) as encoder:
        assert len(search(encoder, folder, "red", top=9)) == 5
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("4 images were skipped: 1 .bmp, 2 .gif, 1 .tif; read are .jpg, .jpeg, .png, .webp") == 1


def test_labels_are_a_list_or_a_file_of_them(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("a red car\n\na cat, asleep\n", encoding="utf-8")
    assert labels_in(str(file)) == ["a red car", "a cat, asleep"]
    assert labels_in(" cat, dog,") == ["cat", "dog"]
    file.write_text("one\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"names\.txt lists one label, 'one'"):
        labels_in(str(file))


def test_user_errors_are_named(make_artifact: Make, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with Encoder.open(make_artifact()) as encoder:
        with pytest.raises(UsageError, match=r"there is no image .*absent.png"):
            classify(encoder, tmp_path / "absent.png", ["red", "blue"])
        with pytest.raises(CorruptInputError, match=r"broken.png: an image cannot be decoded") as corrupt:
            classify(encoder, folder / "broken.png", ["red", "blue"])
        assert corrupt.value.exit_code == 4
        with pytest.raises(UsageError, match="'red' is the only label, and would get 100% of any image"):
            classify(encoder, folder / "0.png", ["red"])
        with pytest.raises(UsageError, match="there are no labels"):
            classify(encoder, folder / "0.png", [])
        with pytest.raises(UsageError, match="'a photo' has no place for the label"):
            classify(encoder, folder / "0.png", ["red", "blue"], template="a photo")
        with pytest.raises(UsageError, match=r"'a \{x\} \{\}' has a place \{x\}, and only the label is put in"):
            classify(encoder, folder / "0.png", ["red", "blue"], template="a {x} {}")
        with pytest.raises(UsageError, match="there is no folder"):
            search(encoder, tmp_path / "absent", "red")
        with pytest.raises(UsageError, match=r"no image that can be read \(0 files tried\)"):
            search(encoder, tmp_path / "empty", "red")
        for nothing in ("", " \n"):
            with pytest.raises(UsageError, match="says nothing to look for") as empty:
                search(encoder, folder, nothing)
            assert empty.value.exit_code == 2 and "describe an image" in empty.value.hint
        with pytest.raises(UsageError, match="--top 0"):
            search(encoder, folder, "red", top=0)
    with pytest.raises(UsageError, match="is not an artifact: there is no such folder"):
        Encoder.open(tmp_path / "absent")
    with (
        Encoder.open(make_artifact(), towers=("image",)) as encoder,
        pytest.raises(UsageError, match="without its text"),
    ):
        encoder.texts(["red"])
    with Encoder.open(make_artifact(facts={"logit_scale": None})) as encoder:
        with pytest.raises(UsageError, match="does not state the model's logit scale") as caught:
            classify(encoder, folder / "0.png", ["red", "blue"])
        assert caught.value.exit_code == 2


MODULES = (
    *(f"runtime.{name}" for name in ("backends", "encoder", "tokenize", "cuda", "machine", "conditions", "nvml")),
    *("measure.bench.bench", "measure.drift.drift", "measure.peak", "measure.compare", "data.preprocess"),
    "compress.int8.recalibration",
)


def test_the_runtime_works_without_torch(make_artifact: Make, folder: Path) -> None:
    code = f"""
import sys
blocked = ("torch", "transformers", "onnx", "safetensors")
sys.modules.update(dict.fromkeys(blocked))
import importlib
for module in {MODULES!r}:
    importlib.import_module("mmcompress." + module)
from mmcompress.runtime.answers import classify, labels_in, search
from mmcompress.runtime.encoder import Encoder
with Encoder.open({str(make_artifact().path)!r}) as encoder:
    print(len(classify(encoder, {str(folder / "0.png")!r}, ["red", "blue"])))
    print(len(search(encoder, {str(folder)!r}, "red")))
print([name for name in blocked if sys.modules.get(name) is not None])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2", "5", "[]"]


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (0, "zeros only")]
)
def test_an_answer_without_direction_is_refused_by_every_command(
    make_artifact: Make, folder: Path, value: float, what: str
) -> None:
    model = make_model()
    artifact = make_artifact(model=replace(model, second=np.full_like(model.second, value)))
    image = folder / "0.png"
    said = f"{artifact.path}: the image tower on onnxruntime answers {image} with"
    with Encoder.open(artifact, "onnxruntime") as encoder:
        for ask in (lambda: classify(encoder, image, ["red", "blue"]), lambda: search(encoder, folder, "red")):
            with pytest.raises(CorruptInputError) as caught:
                ask()
            assert caught.value.what.startswith(said) and caught.value.what.endswith(what)


def test_the_text_that_has_no_answer_is_named(make_artifact: Make) -> None:
    model = make_model()
    model.table[4 + WORDS.index("blue")] = np.nan
    with (
        Encoder.open(make_artifact(model=model), "onnxruntime") as encoder,
        pytest.raises(CorruptInputError, match="the text tower on onnxruntime answers 'blue' with numbers"),
    ):
        encoder.texts(["red", "blue"])
