"""The export stage: files, manifest, checks and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_clip import CONTEXT, clip_of, config_of, tensors_of, write_checkpoint

from mmcompress.artifact import Artifact
from mmcompress.config import ExportConfig
from mmcompress.errors import CorruptInputError, GateFailedError, MMCompressError, UsageError
from mmcompress.export import export as stage
from mmcompress.export.graph import Numerics
from mmcompress.export.opset import check_opset
from mmcompress.export.reference import random_inputs
from mmcompress.export.towers import image_graph
from mmcompress.pipeline.run import run_stage
from mmcompress.runtime.encoder import Encoder
from mmcompress.stages import STAGES

Make = Callable[..., Artifact]


def exported(source: Artifact, out: Path, **config: Any) -> Artifact:
    return run_stage(STAGES["export"], ExportConfig(**config), {"checkpoint": source}, (), out)


def test_the_stage_writes_every_precision_and_describes_it(checkpoint: Make, tmp_path: Path) -> None:
    source = checkpoint()
    made = exported(source, tmp_path / "out", precisions=("fp32", "fp16", "int8"))
    kinds = ("fp32", "fp16", "int8-signed", "int8-unsigned")
    assert set(made.manifest.files) == {
        *(f"{tower}-{kind}.onnx" for tower in ("image", "text") for kind in kinds),
        "tokenizer.json",
        "README.md",
    }
    image = made.manifest.graphs[0]
    assert (image.inputs[0].name, image.inputs[0].shape, image.inputs[0].dtype) == (
        "pixels",
        (None, 3, 32, 32),
        "float32",
    )
    text = next(graph for graph in made.manifest.graphs if graph.tower == "text")
    assert (text.inputs[0].name, text.inputs[0].shape, text.inputs[0].dtype) == ("tokens", (None, CONTEXT), "int32")
    assert {(g.outputs[0].name, g.outputs[0].shape, g.outputs[0].dtype) for g in made.manifest.graphs} == {
        ("embedding", (None, 24), "float32")
    }
    facts = made.manifest.facts
    assert facts["params"] == source.model.params == sum(t.size for t in tensors_of(clip_of(config_of())).values())
    assert facts["macs"] == source.model.macs
    assert facts["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-3)
    assert facts["ranges_source"] == {"stage": "quantize", "method": "minmax"}
    assert made.model == source.model and made.preprocessing == source.preprocessing
    measured = made.manifest.metrics["against_torch"]
    assert measured["image-fp32.onnx"]["max_abs"] < 1e-5 < measured["image-int8-unsigned.onnx"]["max_abs"]
    sizes = {name: entry.bytes for name, entry in made.manifest.files.items()}
    assert sizes["image-int8-signed.onnx"] < sizes["image-fp16.onnx"] < sizes["image-fp32.onnx"]


def test_two_exports_have_one_digest(checkpoint: Make, tmp_path: Path) -> None:
    source = checkpoint()
    first, second = (exported(source, tmp_path / side / "out", precisions=("fp32", "int8")) for side in "ab")
    assert first.digest == second.digest


def test_int8_without_ranges_says_what_to_run(checkpoint: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no ranges\.json, so it is no quantized checkpoint") as caught:
        exported(checkpoint(calibrated=False), tmp_path / "out", precisions=("int8",))
    assert "mmcompress quantize" in caught.value.hint and caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_ranges_of_another_model_are_refused(checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint()
    more = (*stage.linear_modules(source.model), "image.blocks.9.fc1")
    monkeypatch.setattr(stage, "linear_modules", lambda _: more)
    with pytest.raises(CorruptInputError, match=r"no range for image\.blocks\.9\.fc1 \(1 missing\)") as caught:
        exported(source, tmp_path / "out", precisions=("int8",))
    assert caught.value.exit_code == 4


def test_a_graph_that_differs_from_torch_is_refused(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(config: Any, tensors: Any, numerics: Numerics, opset: int) -> Any:
        changed = {**tensors, "visual_projection.weight": tensors["visual_projection.weight"] + 0.01}
        return image_graph(config, changed, numerics, opset)

    monkeypatch.setitem(stage._BUILDERS, "image", wrong)
    with pytest.raises(GateFailedError, match=r"image-fp32\.onnx is \S+ from torch, the limit is 0\.0001"):
        exported(checkpoint(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_safetensors(checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not this")
    with pytest.raises(CorruptInputError, match="no readable safetensors"):
        stage.read_tensors(tmp_path / "model.safetensors")
    with pytest.raises(MMCompressError, match=r"has no absent\.safetensors"):
        stage.read_tensors(tmp_path / "absent.safetensors")


def test_large_weights_go_into_a_file_beside_the_graph(tmp_path: Path) -> None:
    config = config_of()
    proto = image_graph(config, tensors_of(clip_of(config)), Numerics(), 18)
    path = tmp_path / "image.onnx"
    pixels = random_inputs(config, "image", 3)

    def embed(model: Any) -> np.ndarray[Any, Any]:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"pixels": pixels})[0])

    expected = embed(proto.SerializeToString())
    stage.save_graph(proto, path, limit_bytes=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.onnx", "image.onnx.data"]
    assert path.stat().st_size < (tmp_path / "image.onnx.data").stat().st_size
    np.testing.assert_array_equal(embed(str(path)), expected)
    assert onnx.load(str(path)).graph.name == "image"


def test_random_inputs_end_every_text() -> None:
    for eos, end in ((59, 59), (2, 59)):
        ids = random_inputs(config_of(text_eos_token_id=eos), "text", 8)
        assert ids.dtype == np.int32 and ((ids == end).sum(axis=1) == 1).all()
    assert math.isclose(float(random_inputs(config_of(), "image", 8).std()), 1, rel_tol=0.05)


def test_a_graph_that_answers_nan_is_refused_in_every_precision(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product with NaN is appended by onnx itself, to the FP16 graph only."""
    build = stage.image_graph

    def broken(config: Any, tensors: Any, numerics: Numerics, opset: int) -> onnx.ModelProto:
        model: onnx.ModelProto = build(config, tensors, numerics, opset)
        if numerics.dtype == np.float16:
            output = model.graph.output[0].name
            for node in model.graph.node:
                node.output[:] = ["sound" if name == output else name for name in node.output]
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
            model.graph.node.append(onnx.helper.make_node("Mul", ["sound", "nan"], [output]))
        return model

    monkeypatch.setitem(stage._BUILDERS, "image", broken)
    with pytest.raises(GateFailedError, match=r"image-fp16\.onnx answers random inputs with NaN"):
        exported(checkpoint(), tmp_path / "out", precisions=("fp32", "fp16"))
    assert not (tmp_path / "out").exists()


def test_weights_that_are_nan_are_named(tmp_path: Path) -> None:
    config = config_of()
    tensors = tensors_of(clip_of(config))
    tensors["visual_projection.weight"][0, 0] = np.nan
    source = write_checkpoint(tmp_path / "broken", config, tensors, None)
    with pytest.raises(CorruptInputError, match=r"tensor 'visual_projection\.weight' has numbers that are NaN"):
        exported(source, tmp_path / "out", precisions=("fp32",))


def test_a_tower_that_answers_always_the_same_is_recorded_and_told_by_the_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of()
    tensors = dict(tensors_of(clip_of(config)))
    tensors["vision_model.post_layernorm.weight"] = np.zeros_like(tensors["vision_model.post_layernorm.weight"])
    tensors["vision_model.post_layernorm.bias"] = np.ones_like(tensors["vision_model.post_layernorm.bias"])
    made = exported(write_checkpoint(tmp_path / "same", config, tensors, None), tmp_path / "out", precisions=("fp32",))
    assert made.manifest.facts["constant"] == ["image"]
    capsys.readouterr()
    Encoder.open(made, "onnxruntime", towers=("image",)).close()
    assert "the image tower gives the same answer to everything" in " ".join(capsys.readouterr().err.split())


def test_fp8_is_a_precision_of_a_calibrated_checkpoint(checkpoint: Make, tmp_path: Path) -> None:
    config = ExportConfig(precisions=("fp32", "fp8"))
    graphs = run_stage(STAGES["export"], config, {"checkpoint": checkpoint()}, (), tmp_path / "graphs")
    found = {g.file: (g.precision, g.activations) for g in graphs.manifest.graphs}
    assert found["image-fp8.onnx"] == found["text-fp8.onnx"] == ("fp8", "float")
    apart = graphs.manifest.metrics["against_torch"]
    assert 0.95 < apart["image-fp8.onnx"]["min_cosine"] < 0.99999, "it is FP8, by ONNX Runtime"
    with pytest.raises(CorruptInputError, match="has no range for"):
        bare = write_checkpoint(tmp_path / "bare", config_of(), tensors_of(clip_of(config_of())), {})
        run_stage(STAGES["export"], config, {"checkpoint": bare}, (), tmp_path / "refused")


def test_an_opset_of_any_size_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=f"opset {10**9} is newer than what runs here") as refused:
        check_opset(ExportConfig(opset=10**9))
    assert refused.value.hint.startswith("give --opset ")
