"""A verdict on quantized graphs of any architecture: the same document, with candidates of their own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from conv_graphs import traced_squares

from mmcompress.artifact import Artifact
from mmcompress.config import DataConfig, QuantizeGraphsConfig, VerdictConfig
from mmcompress.errors import UsageError
from mmcompress.export.export import Variant
from mmcompress.export.graph import Numerics
from mmcompress.measure.verdict import contest
from mmcompress.measure.verdict.document import VerdictDocument
from mmcompress.measure.verdict.origins import origin_of
from mmcompress.pipeline.run import run_stage
from mmcompress.stages import STAGES


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    """Every product in INT8, and the pairs."""
    folder = tmp_path_factory.mktemp("graphs")
    traced, data = traced_squares(folder)
    config = QuantizeGraphsConfig(
        data=DataConfig(train=str(data)), samples=30, held=30, batch=10, method="minmax", rounding="nearest",
        max_drop=None, max_flips=None,
    )  # fmt: skip
    return run_stage(STAGES["quantize-graphs"], config, {"graphs": traced}, (), folder / "q"), data


def test_a_verdict_races_float_and_its_candidates(
    quantized: tuple[Artifact, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest, "ROUND_S", 0.002)
    source, data = quantized
    config = VerdictConfig(
        data=DataConfig(validation=str(data)),
        samples=60,
        seconds=0.2,
        backend="onnxruntime",
        max_drop=None,
        max_flips=None,
    )
    judged = run_stage(STAGES["verdict"], config, {"graphs": source}, (), tmp_path / "v")
    found = VerdictDocument.read(judged.file("verdict.json"))
    assert {c.name for c in found.candidates} == {"all", "signed", "outputs", "no-depthwise", "linears"}
    assert [row.precision for row in found.rows] == ["fp32", "int8"]
    assert found.missing == {}
    assert {check.check for check in found.sanity} >= {"equal to onnxruntime", "better than chance"}
    assert judged.manifest.facts["params"] == source.manifest.facts["params"]
    assert {graph.precision for graph in judged.manifest.graphs} == {"fp32", "int8"}


def test_candidates_quantize_what_they_say(quantized: tuple[Artifact, Path], tmp_path: Path) -> None:
    origin = origin_of(quantized[0])
    found = {}
    for candidate, numerics in origin.candidates("openvino"):
        path = tmp_path / f"{candidate.name}.onnx"
        origin.write(path, "image", candidate.name, Variant("int8", numerics))
        nodes = onnx.load(str(path)).graph.node
        found[candidate.name] = {node.name for node in nodes if node.op_type == "QuantizeLinear"}
        stored = {node.name.removesuffix(".weight.dequantize") for node in nodes if ".weight." in node.name}
        assert not stored & numerics.kept and len(stored) + len([n for n in numerics.kept if n[0] == "i"]) == 9
    raw = {name for name in found["outputs"] if name.endswith(".raw.quantize")}
    assert len(raw) == 6 and not any(name.endswith(".raw.quantize") for name in found["all"])
    assert found["linears"] < found["no-depthwise"] < found["all"] < found["outputs"]
    assert [candidate.activations for candidate, _ in origin.candidates("tensorrt")] == ["signed"]
    with pytest.raises(UsageError, match="no FP16 form"):
        origin.write(tmp_path / "half.onnx", "image", "fp16", Variant("fp16", Numerics()))


def test_graphs_that_nobody_quantized_have_no_verdict(tmp_path: Path) -> None:
    traced, _ = traced_squares(tmp_path)
    with pytest.raises(UsageError, match="were not quantized as graphs"):
        origin_of(traced)
