"""The bundle for compilers of other vendors: static graphs, samples as they are fed, and answers to them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from shards import shard

from mmcompress.artifact import Artifact
from mmcompress.config import BankConfig, DataConfig, ExportConfig, StaticConfig
from mmcompress.errors import UsageError
from mmcompress.manifest import Kind
from mmcompress.pipeline import standalone
from mmcompress.pipeline.run import run_stage
from mmcompress.stages import STAGES

Make = Callable[..., Artifact]


def bundled(source: Artifact, folder: Path, samples: int = 5, **config: Any) -> Artifact:
    graphs = run_stage(STAGES["export"], ExportConfig(**config), {"checkpoint": source}, (), folder / "graphs")
    built = StaticConfig(data=DataConfig(train=str(shard(folder / "pairs-00000.tar", 8))), samples=samples)
    return run_stage(STAGES["static"], built, {"graphs": graphs}, (), folder / "bundle")


def test_it_holds_what_a_compiler_and_whoever_checks_it_needs(checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("w1\nw2 w3\n")
    made = bundled(checkpoint(), tmp_path, precisions=("fp32",), bank=BankConfig(labels=str(tmp_path / "names.txt")))
    assert made.manifest.kind is Kind.BUNDLE and made.manifest.bank is not None
    outputs = {"image": {"embedding": (5, 24), "logits": (5, 2)}, "text": {"embedding": (5, 24)}}
    for graph in made.manifest.graphs:
        model = onnx.load(str(made.file(graph.file)))
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            assert all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim), value.name
        assert len(model.graph.value_info) > 20, "shapes in between are inferred"
        (spec,) = graph.inputs
        samples = np.load(made.file(f"samples/{graph.tower}-{spec.name}.npy"))
        assert samples.dtype == spec.dtype and samples.shape == (5, *spec.shape[1:])
        assert len(np.unique(samples.reshape(5, -1), axis=0)) > 1 or graph.tower == "text"
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for name, shape in outputs[graph.tower].items():
            answers = np.load(made.file(f"answers/{graph.tower}-{name}.npy"))
            assert answers.shape == shape
            (answer,) = session.run([name], {spec.name: samples[3:4]})
            np.testing.assert_allclose(answers[3:4], answer, atol=1e-6)


def test_the_snippet_of_its_readme_writes_what_it_says(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundled(checkpoint(), tmp_path, precisions=("fp32",))
    readme = made.file("README.md").read_text(encoding="utf-8")
    for said in ("QNN", "RKNN", "Hailo", "LiteRT", "0.5", "tools was run here"):
        assert said in readme, said
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    monkeypatch.chdir(made.path)
    exec(snippet, {})
    lines = Path("image-list.txt").read_text().split()
    assert lines == [f"image-{i:04d}.npy" for i in range(5)]
    first = np.load("samples/image-pixels.npy")[:1]
    np.testing.assert_array_equal(np.load(lines[0]), first)
    assert Path("image-0000.raw").read_bytes() == first.tobytes()


def test_any_size_is_refused_before_the_export(checkpoint: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a bundle is of static shape"):
        standalone.export(str(checkpoint().path), tmp_path / "out", {"image_input": "any"}, static=True)
    assert not (tmp_path / "out").exists()


def test_frames_of_one_size_stay_bytes_and_any_size_is_refused(checkpoint: Make, tmp_path: Path) -> None:
    made = bundled(checkpoint(), tmp_path, precisions=("fp32",), image_input="32x32")
    assert np.load(made.file("samples/image-image.npy")).dtype == np.uint8
    assert "uint8 RGB" in made.file("README.md").read_text()
    with pytest.raises(UsageError, match="takes images of any size") as caught:
        bundled(checkpoint(), tmp_path / "any", precisions=("fp32",), image_input="any")
    assert "--image-input 480x640" in caught.value.hint
    for size in ((48, 64), (80, 40)):
        made = bundled(checkpoint(), tmp_path / f"{size[0]}", precisions=("fp32",), image_input=f"{size[0]}x{size[1]}")
        frames = np.load(made.file("samples/image-image.npy"))
        assert frames.shape == (5, *size, 3) and frames.dtype == np.uint8
        assert all(edge.any() for edge in (frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1])), "no margin"
    with pytest.raises(UsageError, match="has no image graph in FP32"):
        bundled(checkpoint(), tmp_path / "int8", precisions=("int8",))
    with pytest.raises(UsageError, match="needs images and texts"):
        graphs = Artifact.open(tmp_path / "graphs")
        run_stage(STAGES["static"], StaticConfig(data=DataConfig()), {"graphs": graphs}, (), tmp_path / "none")
