"""TensorRT-RTX builds real engines here, with no GPU, and the audit says what was compiled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import TensorProto, helper
from tiny_clip import clip_of, config_of, tensors_of, wide_ranges

from mmcompress.artifact import Artifact
from mmcompress.config import BuildConfig, ExportConfig
from mmcompress.errors import MissingRequirementError, UsageError
from mmcompress.export import build as builder
from mmcompress.export.document import AuditDocument
from mmcompress.export.export import save_graph
from mmcompress.export.graph import Numerics
from mmcompress.export.towers import image_graph, text_graph
from mmcompress.int8 import linear_modules
from mmcompress.manifest import TensorSpec
from mmcompress.measure.verdict.candidates import CANDIDATES, LINEARS, candidates_for
from mmcompress.pipeline.run import run_stage
from mmcompress.runtime.passport import Machine, differences, stated_passport
from mmcompress.stages import STAGES

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
Make = Callable[..., Artifact]
PIXELS = (TensorSpec(name="pixels", shape=(None, 3, 32, 32), dtype="float32"),)
TOKENS = (TensorSpec(name="tokens", shape=(None, 12), dtype="int32"),)
ALL = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")


def graph_file(folder: Path, graph: Any, numerics: Numerics, **changes: Any) -> Path:
    config = config_of(**changes)
    path = folder / "graph.onnx"
    save_graph(graph(config, tensors_of(clip_of(config)), numerics, 18), path)
    return path


def signed(**changes: Any) -> Numerics:
    import numpy as np

    return Numerics(np.float16, "signed", wide_ranges(config_of(**changes)))


def built(path: Path, inputs: Any = PIXELS, target: str = "sm86") -> builder.Engine:
    return builder.engine_from_onnx(trt, path, inputs, target=target, batches=(1, 4, 8))


@pytest.mark.parametrize("name", [one.name for one in CANDIDATES if "tensorrt-rtx" in one.backends])
def test_a_candidate_of_a_verdict_compiles_to_what_it_says(name: str, tmp_path: Path) -> None:
    int8 = {"signed": signed(), "float8": replace(signed(), activations="float8")}
    found = {one.name: (one, numerics) for one, numerics in candidates_for("tensorrt-rtx", config_of(), int8)}
    candidate, numerics = found[name]
    audit = built(graph_file(tmp_path, image_graph, numerics), target="sm89").audit
    kinds = {linear: candidate.precision if linear in candidate.linears else "fp16" for linear in LINEARS}
    assert audit.modules == {f"image.blocks.{i}.{linear}": kind for i in (0, 1) for linear, kind in kinds.items()}
    assert audit.attention == {"fp16": 2}, "the fusion stays"


@pytest.mark.parametrize("target", ALL)
def test_every_target_runs_exactly_the_linears_in_int8(target: str, tmp_path: Path) -> None:
    engine = built(graph_file(tmp_path, image_graph, signed()), target=target)
    expected = [name for name in linear_modules(config_of()) if name.startswith("image.")]
    assert engine.audit.modules == dict.fromkeys(expected, "int8")
    assert engine.audit.products["int8"] == len(expected) + 1, "QKV of the last block is two products"
    assert engine.audit.products["fp16"] == 2, "patch embedding and projection"
    assert engine.audit.attention == {"fp16": 2}, "one fused attention a block"
    assert engine.audit.weights_bytes and engine.plan[:4]


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "gelu"},
        {"heads": (3, 1, 2), "mlp": (96, 32, 64), "head_dim": 16, "width": 48},
        {"heads": (2, 2), "head_dim": 32, "width": 64, "mlp": (256, 256)},
    ],
)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_pruned_and_gelu_towers_run_in_int8_too(changes: dict[str, Any], tower: str, tmp_path: Path) -> None:
    config = config_of(**changes)
    full = config_of(**{**changes, "heads": (config.image.width // config.image.head_dim,) * config.image.depth})
    tensors = cut_to(config, tensors_of(clip_of(full.model_copy())))
    graph, inputs = (image_graph, PIXELS) if tower == "image" else (text_graph, TOKENS)
    save_graph(graph(config, tensors, signed(**changes), 18), tmp_path / "graph.onnx")
    audit = built(tmp_path / "graph.onnx", inputs).audit
    assert audit.modules == dict.fromkeys((n for n in linear_modules(config) if n.startswith(tower)), "int8")


def cut_to(config: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Keep the first heads and MLP units of every block."""
    for name, tower in (("vision_model", config.image), ("text_model", config.text)):
        for i in range(tower.depth):
            stem, inner, hidden = f"{name}.encoder.layers.{i}", tower.heads[i] * tower.head_dim, tower.mlp[i]
            for part in "qkv":
                for leaf in ("weight", "bias"):
                    key = f"{stem}.self_attn.{part}_proj.{leaf}"
                    tensors[key] = tensors[key][:inner]
            tensors[f"{stem}.self_attn.out_proj.weight"] = tensors[f"{stem}.self_attn.out_proj.weight"][:, :inner]
            for leaf in ("weight", "bias"):
                tensors[f"{stem}.mlp.fc1.{leaf}"] = tensors[f"{stem}.mlp.fc1.{leaf}"][:hidden]
            tensors[f"{stem}.mlp.fc2.weight"] = tensors[f"{stem}.mlp.fc2.weight"][:, :hidden]
    return tensors


@pytest.mark.parametrize("tower", ["image", "text"])
def test_attention_by_token_spares_a_copy_a_block(tower: str, tmp_path: Path) -> None:
    """One of two blocks: the last reads a single row, where no copy was."""
    graph, inputs = (image_graph, PIXELS) if tower == "image" else (text_graph, TOKENS)
    by_image = built(graph_file(tmp_path, graph, replace(signed(), by_token=False)), inputs).audit
    by_token = built(graph_file(tmp_path, graph, signed()), inputs).audit
    assert by_token.layers == by_image.layers - 1 and by_token.modules == by_image.modules
    assert by_token.attention == by_image.attention == {"fp16": 2}


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_every_linear_runs_in_fp8(target: str, tower: str, tmp_path: Path) -> None:
    graph, inputs = (image_graph, PIXELS) if tower == "image" else (text_graph, TOKENS)
    path = graph_file(tmp_path, graph, replace(signed(), activations="float8"))
    audit = built(path, inputs, target=target).audit
    assert audit.modules == {name: "fp8" for name in linear_modules(config_of()) if name.startswith(tower)}
    assert audit.quantized == audit.modules and audit.attention == {"fp16": 2}


def test_gpus_without_fp8_are_refused_by_name(tmp_path: Path) -> None:
    path = graph_file(tmp_path, image_graph, replace(signed(), activations="float8"))
    with pytest.raises(UsageError, match=r"graph\.onnx has 9 Linears in FP8, which sm86 does not compute") as caught:
        built(path, target="sm86")
    assert "sm89 and later" in caught.value.hint


def test_fp8_is_refused_for_every_target_before_one_is_built(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = run_stage(
        STAGES["export"], ExportConfig(precisions=("fp8",)), {"checkpoint": checkpoint()}, (), tmp_path / "g"
    )
    monkeypatch.setattr("mmcompress.export.build.engine_from_onnx", lambda *_, **__: pytest.fail("one was built"))
    with pytest.raises(UsageError, match="in FP8, which sm86 does not compute"):
        run_stage(STAGES["build"], BuildConfig(targets=("sm89", "sm86")), {"graphs": graphs}, (), tmp_path / "e")


def test_float_engines_have_no_int8(tmp_path: Path) -> None:
    import numpy as np

    half = built(graph_file(tmp_path, text_graph, Numerics(np.float16)), TOKENS).audit
    assert set(half.modules.values()) == {"fp16"} and set(half.products) == {"fp16"}
    full = built(graph_file(tmp_path, text_graph, Numerics()), TOKENS).audit
    assert set(full.modules.values()) == {"fp32"} and set(full.products) == {"fp32"}
    assert half.weights_bytes and full.weights_bytes and half.weights_bytes < 0.6 * full.weights_bytes


def test_engines_repeat_byte_for_byte_in_another_process_and_folder(tmp_path: Path) -> None:
    path = graph_file(tmp_path, image_graph, signed())
    copy = tmp_path / "elsewhere" / "other.onnx"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    code = (
        "import sys, hashlib, tensorrt_rtx as trt; from pathlib import Path\n"
        "from mmcompress.manifest import TensorSpec; from mmcompress.export.build import engine_from_onnx\n"
        "spec = TensorSpec(name='pixels', shape=(None, 3, 32, 32), dtype='float32')\n"
        "plan = engine_from_onnx(trt, Path(sys.argv[1]), [spec], target='sm86', batches=(1, 4, 8)).plan\n"
        "Path(sys.argv[2]).write_bytes(plan)"
    )
    subprocess.run([sys.executable, "-c", code, str(copy), str(tmp_path / "other.engine")], check=True)
    assert (tmp_path / "other.engine").read_bytes() == built(path).plan


def test_the_stage_builds_the_signed_graphs_with_a_passport(checkpoint: Make, tmp_path: Path) -> None:
    graphs = run_stage(
        STAGES["export"], ExportConfig(precisions=("fp32", "int8")), {"checkpoint": checkpoint()}, (), tmp_path / "int8"
    )
    config = BuildConfig(targets=("sm86", "sm120"), batches=(1, 4, 8))
    first, second = (
        run_stage(STAGES["build"], config, {"graphs": graphs}, (), tmp_path / side / "engines") for side in "ab"
    )
    assert first.digest == second.digest, "two builds are the same"
    engines = {f"{tower}-int8-{target}.engine" for tower in ("image", "text") for target in ("sm86", "sm120")}
    assert set(first.manifest.files) == {*engines, "audit.json", "tokenizer.json"}
    assert {(g.target, g.activations) for g in first.manifest.graphs} == {("sm86", "signed"), ("sm120", "signed")}
    facts = first.manifest.facts
    assert facts["backend"] == "tensorrt-rtx" and facts["tensorrt_version"] == trt.__version__
    assert facts["targets"] == ["sm86", "sm120"]
    summary = facts["audit"]["image-int8-sm86.engine"]
    assert summary["modules"] == {"int8": 8} and summary["not_int8"] == []
    assert (
        json.loads(first.file("audit.json").read_text())["text-int8-sm120.engine"]["modules"]["text.blocks.1.qkv"]
        == "int8"
    )
    graph = next(graph for graph in first.manifest.graphs if graph.file == "image-int8-sm86.engine")
    passport = stated_passport(first.manifest, graph)
    assert passport is not None and passport.built_on.gpu is None, "no GPU took part"
    assert passport.built_on.target == "sm86" and passport.profiles == ((1, 4, 8),)
    assert passport.onnx_sha256 == graphs.manifest.files["image-int8-signed.onnx"].sha256
    assert passport.checkpoint == graphs.manifest.parents["checkpoint"]
    assert passport.precisions == summary["products"] and passport.weights_bytes == summary["weights_bytes"]
    here = Machine(backend="tensorrt-rtx", tensorrt=trt.__version__, target="sm86", gpu="NVIDIA RTX A4000")
    assert differences(passport, here) == []
    engines = AuditDocument.read(first.file("audit.json")).engines
    assert engines["image-int8-sm86.engine"].modules["image.blocks.0.out"] == "int8"


def test_sparse_lists_what_is_eligible_and_claims_nothing(
    checkpoint: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A dense model is refused; of one whose image Linears are 2:4 they are listed, and it says what is not known."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    export, config = ExportConfig(precisions=("int8",)), BuildConfig(targets=("sm86",), batches=(1, 4, 8), sparse=True)
    dense = run_stage(STAGES["export"], export, {"checkpoint": checkpoint()}, (), tmp_path / "dense")
    with pytest.raises(UsageError, match=r"no Linear of .* is 2:4 sparse, and sparse = true was asked for"):
        run_stage(STAGES["build"], config, {"graphs": dense}, (), tmp_path / "refused")
    assert "running" not in " ".join(capfd.readouterr().err.split()).replace("export (dense) running", "")

    source = checkpoint()
    tensors = load_file(source.file("model.safetensors"))
    for name, weight in tensors.items():
        if name.startswith("vision_model.encoder.layers.") and weight.ndim == 2:
            groups = weight.reshape(len(weight), -1, 4).copy()
            np.put_along_axis(groups, np.abs(groups).argsort(axis=-1)[..., :2], 0, axis=-1)
            tensors[name] = groups.reshape(weight.shape)
    with Artifact.create(tmp_path / "sparse", kind=source.manifest.kind, stage="quantize", key="s") as draft:
        draft.inherit(source, *(name for name in source.manifest.files if name != "model.safetensors"))
        save_file(tensors, draft.path / "model.safetensors")
    graphs = run_stage(STAGES["export"], export, {"checkpoint": Artifact.open(tmp_path / "sparse")}, (), tmp_path / "s")
    facts = run_stage(STAGES["build"], config, {"graphs": graphs}, (), tmp_path / "engines").manifest.facts
    linears = [f"image.blocks.{i}.{linear}" for i in (0, 1) for linear in ("qkv", "out", "fc1", "fc2")]
    assert facts["two_four"] == {"image-int8-signed.onnx": linears, "text-int8-signed.onnx": []}
    assert facts["audit"]["image-int8-sm86.engine"]["modules"] == {"int8": 8}
    assert facts["sparsity_log"] == {"image-int8-sm86.engine": [], "text-int8-sm86.engine": []}
    assert "does not say whether it took a sparse kernel" in " ".join(capfd.readouterr().err.split())


def test_float_artifacts_build_from_fp16_then_fp32(checkpoint: Make, tmp_path: Path) -> None:
    source = checkpoint()
    for precisions, chosen in ((("fp32", "fp16"), "fp16"), (("fp32",), "fp32")):
        config = ExportConfig(precisions=precisions)
        graphs = run_stage(STAGES["export"], config, {"checkpoint": source}, (), tmp_path / chosen)
        assert {graph.precision for graph in builder.chosen_graphs(graphs)} == {chosen}


@pytest.mark.parametrize("target", ["sm87", "sm90", "ampere"])
def test_an_unknown_target_lists_the_known_ones(target: str, checkpoint: Make, tmp_path: Path) -> None:
    graphs = run_stage(STAGES["export"], ExportConfig(), {"checkpoint": checkpoint()}, (), tmp_path / "graphs")
    with pytest.raises(UsageError, match=f"tensorrt-rtx does not build for '{target}'") as caught:
        run_stage(STAGES["build"], BuildConfig(targets=(target,)), {"graphs": graphs}, (), tmp_path / "out")
    assert caught.value.hint == f"it builds for {', '.join(ALL)} and native"
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()


def test_classic_tensorrt_builds_for_its_own_gpu_only() -> None:
    with pytest.raises(UsageError, match="tensorrt does not build for 'sm86'") as caught:
        builder.checked_targets(SimpleNamespace(), "tensorrt", ["sm86"])  # type: ignore[arg-type]
    assert "native only" in caught.value.hint
    assert builder.checked_targets(SimpleNamespace(), "tensorrt", ["native"]) == ("native",)  # type: ignore[arg-type]


def test_the_machine_is_looked_at_before_a_native_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "this_machine", lambda backend: (_ for _ in ()).throw(MissingRequirementError("none")))
    builder.check_build(BuildConfig(targets=("sm86",)), {})
    with pytest.raises(MissingRequirementError, match="none") as caught:
        builder.check_build(BuildConfig(targets=("native",)), {})
    assert (
        caught.value.hint
        == f"name the GPUs to build for, which needs none here: --target sm86 (known: {', '.join(ALL)})"
    )


def test_native_needs_the_gpu_that_it_means(tmp_path: Path) -> None:
    if gpu_here():
        pytest.skip("there is a GPU")
    with pytest.raises(MissingRequirementError, match=r"there is no GPU to build on: .*cudaError") as caught:
        built(graph_file(tmp_path, image_graph, Numerics()), target="native")
    assert "name the targets: --target sm86" in caught.value.hint and caught.value.exit_code == 3


def gpu_here() -> bool:
    return shutil.which("nvidia-smi") is not None


def test_a_missing_wheel_names_the_extra(checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = run_stage(STAGES["export"], ExportConfig(), {"checkpoint": checkpoint()}, (), tmp_path / "graphs")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingRequirementError, match="tensorrt_rtx") as caught:
        run_stage(STAGES["build"], BuildConfig(), {"graphs": graphs}, (), tmp_path / "out")
    assert caught.value.hint == "pip install 'mmcompress[tensorrt-rtx]'" and caught.value.exit_code == 3


def test_what_the_parser_refuses_is_named_with_its_node(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Unheard", ["pixels"], ["embedding"], name="image.blocks.0.odd", domain="nowhere")],
        "odd",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nowhere", 1)]
    path = tmp_path / "odd.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    with pytest.raises(
        UsageError, match=r"does not take odd\.onnx: node 'image\.blocks\.0\.odd' \(Unheard\)"
    ) as caught:
        built(path)
    assert caught.value.exit_code == 2


def test_unsigned_activations_are_refused_by_the_parser(tmp_path: Path) -> None:
    numerics = Numerics(activations="unsigned", ranges=wide_ranges(config_of()))
    with pytest.raises(UsageError, match="does not take"):
        built(graph_file(tmp_path, image_graph, numerics))


def test_batches_must_rise_and_only_the_batch_may_vary(tmp_path: Path) -> None:
    path = graph_file(tmp_path, image_graph, Numerics())
    with pytest.raises(UsageError, match=r"batches \[8, 4, 1\] do not rise"):
        builder.engine_from_onnx(trt, path, PIXELS, target="sm86", batches=(8, 4, 1))
    loose = (TensorSpec(name="pixels", shape=(None, 3, None, 32), dtype="float32"),)
    with pytest.raises(UsageError, match=r"input 'pixels' is \(None, 3, None, 32\)") as caught:
        built(path, loose)
    assert caught.value.hint == "only the first axis may be dynamic"


@pytest.mark.gpu
def test_classic_tensorrt_builds_natively(tmp_path: Path) -> None:
    classic = pytest.importorskip("tensorrt", exc_type=ImportError)
    path = graph_file(tmp_path, image_graph, signed())
    engine = builder.engine_from_onnx(classic, path, PIXELS, target="native", batches=(1, 4, 8))
    assert engine.plan
