"""After a build an engine is held against the FP32 graph, here with stand-ins for the engine's session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.config import BuildConfig, ExportConfig
from mmcompress.errors import GateFailedError
from mmcompress.export import answers as module
from mmcompress.export import build as builder
from mmcompress.export.answers import INPUTS, check_answers, reference_graph, warn_without_reference
from mmcompress.pipeline.run import run_stage
from mmcompress.runtime.backends import open_file
from mmcompress.runtime.passport import Machine
from mmcompress.runtime.session import Session
from mmcompress.stages import STAGES

Make = Callable[..., Artifact]
Change = Callable[[NDArray[Any]], NDArray[Any]]


class Engine(Session):
    """Passes for an engine: what the FP32 graph answers, changed."""

    def __init__(self, source: Artifact, tower: str, change: Change, max_batch: int | None) -> None:
        graph = next(g for g in source.manifest.graphs if g.tower == tower and g.precision == "fp32")
        self._session = open_file(source.file(graph.file), graph, "onnxruntime")
        self.inputs, self.outputs, self.max_batch = graph.inputs, graph.outputs, max_batch
        self.batches: list[int] = []
        self._change = change

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.batches.append(len(next(iter(feeds.values()))))
        return {name: self._change(array.copy()) for name, array in self._session.run(feeds).items()}

    def close(self) -> None:
        self._session.close()


@pytest.fixture
def graphs(checkpoint: Make, tmp_path: Path) -> Artifact:
    config = ExportConfig(precisions=("fp32", "int8"))
    return run_stage(STAGES["export"], config, {"checkpoint": checkpoint()}, (), tmp_path / "graphs")


def checked(graphs: Artifact, tower: str, change: Change, max_batch: int | None = 32) -> tuple[float | None, list[int]]:
    graph = next(g for g in graphs.manifest.graphs if g.tower == tower and g.activations == "signed")
    engine = Engine(graphs, tower, change, max_batch)
    return check_answers(graphs, graph, "e.engine", lambda: engine), engine.batches


@pytest.mark.parametrize("tower", ["image", "text"])
def test_an_engine_that_answers_alike_passes(tower: str, graphs: Artifact) -> None:
    lowest, batches = checked(graphs, tower, lambda rows: 3 * rows)
    assert lowest == pytest.approx(1, abs=1e-5) and batches == [1, INPUTS], "one by itself, and all together"


def test_small_engines_take_them_in_parts(graphs: Artifact) -> None:
    assert checked(graphs, "image", lambda rows: rows, max_batch=3)[1] == [1, 3, 3, 2]


@pytest.mark.parametrize("image_input", ["any", "48x64"])
def test_engines_that_prepare_images_are_fed_their_size(image_input: str, checkpoint: Make, tmp_path: Path) -> None:
    config = ExportConfig(precisions=("fp32", "int8"), image_input=image_input)
    sized = run_stage(STAGES["export"], config, {"checkpoint": checkpoint()}, (), tmp_path / "sized")
    lowest, batches = checked(sized, "image", lambda rows: rows)
    assert lowest == pytest.approx(1, abs=1e-5) and batches == [1, INPUTS]


def test_batches_lie_within_the_profiles(graphs: Artifact) -> None:
    graph = next(g for g in graphs.manifest.graphs if g.tower == "image" and g.activations == "signed")
    for smallest, largest, batches in ((2, 3, [2, 3, 3, 2]), (3, 3, [3, 3, 3, 3]), (12, 16, [12, 12])):
        engine = Engine(graphs, "image", lambda rows: rows, largest)
        engine.min_batch = smallest
        assert check_answers(graphs, graph, "e", lambda engine=engine: engine) == pytest.approx(1, abs=1e-5)  # type: ignore[misc]
        assert engine.batches == batches


def test_fp8_by_itself_has_no_reference(graphs: Artifact, capfd: pytest.CaptureFixture[str]) -> None:
    graph = next(g for g in graphs.manifest.graphs if g.tower == "image" and g.precision == "int8")
    eight = graph.model_copy(update={"precision": "fp8", "activations": "float"})
    warn_without_reference(graphs, [eight])
    assert "nothing to compare" not in capfd.readouterr().err, "its FP32 graph is there"
    alone = SimpleNamespace(manifest=SimpleNamespace(graphs=[eight]))
    warn_without_reference(alone, [eight])  # type: ignore[arg-type]
    assert "--precision fp32,fp8" in " ".join(capfd.readouterr().err.split())

    def unopened() -> Session:
        raise AssertionError("there is nothing to compare it with")

    assert check_answers(alone, eight, "e.engine", unopened) is None  # type: ignore[arg-type]


def overflowing(rows: NDArray[Any]) -> NDArray[Any]:
    rows[-1, 0] = np.inf
    return rows


def test_infinity_fails(graphs: Artifact) -> None:
    with pytest.raises(GateFailedError, match="answers 2 of 9 inputs with NaN or infinity"):
        checked(graphs, "image", overflowing)


def test_other_answers_fail(graphs: Artifact) -> None:
    with pytest.raises(GateFailedError, match=r"cosine of -1\.0000 to image-fp32\.onnx on .*, and the limit is 0\.9"):
        checked(graphs, "image", lambda rows: -rows)


def test_the_graph_itself_is_the_reference_where_there_is_no_fp32(checkpoint: Make, tmp_path: Path) -> None:
    only = run_stage(
        STAGES["export"], ExportConfig(precisions=("int8",)), {"checkpoint": checkpoint()}, (), tmp_path / "g"
    )
    (graph,) = (g for g in only.manifest.graphs if g.tower == "text" and g.activations == "signed")
    assert reference_graph(only, graph) == graph


def test_a_build_for_the_gpu_in_the_machine_is_checked(
    graphs: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    here = Machine(backend="tensorrt-rtx", tensorrt=trt.__version__, target="sm89", gpu="a stand-in")
    monkeypatch.setattr(builder, "this_machine", lambda backend: here)
    monkeypatch.setattr(builder, "open_plan", lambda path, graph, backend: Engine(graphs, graph.tower, change, 32))
    config = BuildConfig(targets=("sm86", "sm89"), batches=(1, 4, 8))

    def change(rows: NDArray[Any]) -> NDArray[Any]:
        return rows

    built = run_stage(STAGES["build"], config, {"graphs": graphs}, (), tmp_path / "engines")
    found = built.manifest.metrics["min_cosine"]
    assert set(found) == {"image-int8-sm89.engine", "text-int8-sm89.engine"}, "the others cannot run here"
    monkeypatch.setattr(builder, "open_plan", lambda path, graph, backend: Engine(graphs, graph.tower, overflowing, 32))
    with pytest.raises(GateFailedError, match=r"image-int8-sm89\.engine answers"):
        run_stage(STAGES["build"], config, {"graphs": graphs}, (), tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_without_a_cpu_runtime_it_says_that_nothing_was_compared(
    graphs: Artifact, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mmcompress.errors import MissingRequirementError

    def none() -> Any:
        raise MissingRequirementError("no runtime for ONNX graphs works here", "")

    monkeypatch.setattr(module, "default_backend", none)
    assert checked(graphs, "image", lambda rows: rows)[0] is None
    assert "nothing was compared" in " ".join(capfd.readouterr().err.split())
