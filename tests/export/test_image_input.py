"""Preprocessing in the image graph, against Pillow through our own preprocessing, and transformers' processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import PIL
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from mmcompress.artifact import Artifact
from mmcompress.config import ExportConfig
from mmcompress.data.preprocess import normalize, plain_view
from mmcompress.errors import UsageError
from mmcompress.export.graph import GraphWriter, Numerics
from mmcompress.export.imageinput import FILTERS, IMAGE, check_image_input, resize_matrix, size_of, with_image_input
from mmcompress.manifest import Preprocessing
from mmcompress.pipeline.run import run_stage
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.openvino import openvino_module
from mmcompress.stages import STAGES

Make = Callable[..., Artifact]
Run = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
RULE = Preprocessing(size=32, resize=32, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
SIZES = [(32, 32), (33, 32), (31, 40), (20, 27), (100, 75), (75, 100), (97, 311), (480, 640)]
TALL = [(240, 131), (400, 111)] if int(PIL.__version__.split(".")[0]) >= 13 else []
"""Of which some lose so many rows that Pillow takes these first."""
RULES = {
    "clip": RULE,
    "squash": RULE.model_copy(update={"squash": True}),
    "margin": RULE.model_copy(update={"resize": 37, "interpolation": "bilinear"}),
    "even": RULE.model_copy(update={"resize": 39, "centre": "even"}),
}


def photo(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth areas, noise and hard edges, (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    pixels[:, : width // 3] = rng.integers(0, 256, (height, width // 3, 3))
    pixels[height // 2 :: 7] = 255
    return pixels


def preparing(rule: Preprocessing, size: tuple[int, int] | None) -> bytes:
    """A graph that does nothing else."""
    g = GraphWriter(18, Numerics())
    g.node("Identity", "embedding", "pixels")
    model = g.model("prepared", ("pixels", np.float32, (3, rule.size, rule.size)), 1)
    del model.graph.output[:]
    with_image_input(model, rule, size)
    model.graph.output.append(onnx.helper.make_tensor_value_info("embedding", 1, ["batch", 3, rule.size, rule.size]))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def on_onnxruntime(graph: bytes) -> Run:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {IMAGE: images})[0])


def on_openvino(graph: bytes) -> Run:
    core = openvino_module().Core()
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: np.asarray(compiled([images])[0])


RUNTIMES = {"onnxruntime": on_onnxruntime, "openvino": on_openvino}


def levels_apart(ours: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], rule: Preprocessing) -> Any:
    return np.abs(ours - wanted) * np.array(rule.std)[:, None, None] * 255


def check_close(made: np.ndarray[Any, Any], image: np.ndarray[Any, Any], rule: Preprocessing) -> None:
    apart = levels_apart(made, normalize(plain_view(Image.fromarray(image), rule)[None], rule), rule)
    assert apart.max() <= 1.001, image.shape
    assert (apart > 0.01).mean() < 0.01, f"{image.shape}: only ties may round otherwise"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", RULES)
def test_images_of_any_size_are_within_a_level_of_pillow(runtime: str, name: str) -> None:
    run = RUNTIMES[runtime](preparing(RULES[name], None))
    for seed, size in enumerate(SIZES):
        image = photo(*size, seed)
        check_close(run(image[None]), image, RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_images_of_one_size_are_within_a_level_of_pillow(name: str) -> None:
    for runtime, sizes in (("onnxruntime", [*SIZES, *TALL]), ("openvino", SIZES[-1:])):
        for seed, size in enumerate(sizes):
            image = photo(*size, seed)
            check_close(RUNTIMES[runtime](preparing(RULES[name], size))(image[None]), image, RULES[name])


def test_tall_images_of_any_size_are_a_few_levels_apart_at_most() -> None:
    rule = RULES["squash"]
    run = on_onnxruntime(preparing(rule, None))
    for size in TALL:
        image = np.asarray(Image.fromarray(photo(*size)).resize((size[1] // 4, size[0] // 4)).resize(size[::-1]))
        wanted = normalize(plain_view(Image.fromarray(image), rule)[None], rule)
        apart = levels_apart(run(image[None]), wanted, rule)
        assert apart.max() <= 4 and (apart > 1.5).mean() < 0.01


def test_a_batch_is_prepared_as_each_of_its_images() -> None:
    run = on_onnxruntime(preparing(RULE, None))
    images = np.stack([photo(50, 70, seed) for seed in range(3)])
    np.testing.assert_array_equal(run(images), np.concatenate([run(image[None]) for image in images]))


def test_it_is_what_transformers_processor_makes() -> None:
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, image_mean=list(RULE.mean), image_std=list(RULE.std)
    )
    run = on_onnxruntime(preparing(RULE, None))
    for size in SIZES:
        image = photo(*size)
        wanted = np.asarray(processor(images=[Image.fromarray(image)], return_tensors="np")["pixel_values"])
        assert levels_apart(run(image[None]), wanted, RULE).max() <= 1.001


@pytest.mark.parametrize("interpolation", FILTERS)
def test_the_matrix_of_every_filter_resizes_as_pillow(interpolation: str) -> None:
    rng = np.random.default_rng(0)
    for source, resized in ((50, 20), (20, 50), (64, 32), (33, 32), (7, 7)):
        line = rng.integers(0, 256, (1, source, 3), dtype=np.uint8)
        filter_ = Image.Resampling[interpolation.upper()]
        wanted = np.asarray(Image.fromarray(line).resize((resized, 1), filter_))[0]
        made = resize_matrix(source, resized, 0, resized, interpolation) @ line[0]
        assert np.abs(np.clip(np.floor(made + 0.5), 0, 255) - wanted).max() <= 1, (source, resized)


def test_the_models_own_size_is_not_resized() -> None:
    graph = onnx.load_from_string(preparing(RULE, (32, 32)))
    assert "MatMul" not in {node.op_type for node in graph.graph.node}
    graph = onnx.load_from_string(preparing(RULES["margin"], (37, 50)))
    assert [node.op_type for node in graph.graph.node].count("Slice") == 2


def test_what_no_graph_prepares_is_refused() -> None:
    filled = RULE.model_copy(update={"resize": 24})
    with pytest.raises(UsageError, match="filled up with black to 32"):
        check_image_input(filled, None)
    with pytest.raises(UsageError, match="resized by nearest, which adds no pixels up"):
        check_image_input(RULE.model_copy(update={"interpolation": "nearest"}), (480, 640))
    lanczos = RULE.model_copy(update={"interpolation": "lanczos"})
    check_image_input(lanczos, (480, 640))
    with pytest.raises(UsageError, match="resized by lanczos") as caught:
        check_image_input(lanczos, size_of("any"))
    assert "480x640" in caught.value.hint


def exported(source: Artifact, out: Path, **config: Any) -> Artifact:
    return run_stage(STAGES["export"], ExportConfig(**config), {"checkpoint": source}, (), out)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_encoder_answers_as_with_the_preprocessing_outside(checkpoint: Make, tmp_path: Path, backend: Any) -> None:
    source = checkpoint()
    plain = exported(source, tmp_path / "plain", precisions=("fp32", "int8"))
    inside = exported(source, tmp_path / "inside", precisions=("fp32", "int8"), image_input="any")
    graph = next(graph for graph in inside.manifest.graphs if graph.tower == "image")
    assert graph.prepares and (graph.inputs[0].name, graph.inputs[0].shape) == ("image", (None, None, None, 3))
    assert not any(graph.prepares for graph in plain.manifest.graphs)
    files = []
    for seed, (height, width) in enumerate([(64, 48), (33, 90), (32, 32)]):
        files.append(tmp_path / f"{seed}.png")
        Image.fromarray(photo(height, width, seed)).save(files[-1])
    for precision in ("fp32", "int8"):
        with (
            Encoder.open(plain, backend, precision) as outside,  # type: ignore[arg-type]
            Encoder.open(inside, backend, precision) as own,  # type: ignore[arg-type]
        ):
            ours, theirs = own.image_files(files), outside.image_files(files)
            assert (ours * theirs).sum(axis=1).min() > 0.999
            prepared = np.stack([outside.read(path) for path in files])
            np.testing.assert_allclose(own.pixels(prepared), outside.pixels(prepared), atol=1e-5)


def test_one_size_takes_that_size_alone(checkpoint: Make, tmp_path: Path) -> None:
    made = exported(checkpoint(calibrated=False), tmp_path / "out", image_input="48x64")
    for name, size in (("fits", (48, 64)), ("other", (64, 48))):
        Image.fromarray(photo(*size)).save(tmp_path / f"{name}.png")
    with Encoder.open(made, "onnxruntime") as encoder:
        assert encoder.image_files([tmp_path / "fits.png"]).shape == (1, 24)
        with pytest.raises(UsageError, match=r"other\.png is 64 x 48 pixels .* the graph takes 48 x 64"):
            encoder.image_files([tmp_path / "other.png"])
        with pytest.raises(UsageError, match="these are cropped to 32 already"):
            encoder.pixels(np.zeros((1, 32, 32, 3), np.uint8))
        with pytest.raises(UsageError, match="these are normalized"):
            encoder.images(np.zeros((1, 3, 32, 32), np.float32))
        assert encoder.warn_by_chance() is None


def test_graphs_that_prepare_images_are_not_bisected(checkpoint: Make, tmp_path: Path, cli: Callable[..., Any]) -> None:
    sources, config = {"checkpoint": checkpoint()}, ExportConfig(precisions=("fp32",), image_input="any")
    graphs = run_stage(STAGES["export"], config, sources, (), tmp_path / "inside")
    done = cli("bisect", graphs.path, graphs.path, "--data", "demo:test", "--out", tmp_path / "b")
    assert done.code == 2 and f"error: {graphs.path} cannot be bisected" in done.err, done.err
    assert "without --image-input" in done.err and not (tmp_path / "b").exists()
