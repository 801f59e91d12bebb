"""Both CPU runtimes against numpy, and the choice of a graph for a backend."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from toy_model import CONTEXT, SIDE, make_model, unit_rows

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError
from mmcompress.manifest import Kind
from mmcompress.runtime.backends import available_backends, default_backend, graph_for, open_session
from mmcompress.runtime.openvino import OpenVINOSession, openvino_module

CPU: tuple[Backend, ...] = ("onnxruntime", "openvino")
Make = Callable[..., Artifact]


def random_pixels(batch: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)


def test_importing_onnxruntime_starts_no_telemetry(tmp_path: Path) -> None:
    """It would keep a database in the home folder and a session among the temporary files, and report to its maker."""
    (tmp_path / "home").mkdir()
    (tmp_path / "temporary").mkdir()
    code = (
        "from mmcompress.runtime.onnxruntime import onnxruntime_module\nonnxruntime_module().get_available_providers()"
    )
    unset = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    subprocess.run([sys.executable, "-c", code], env={**unset, "PYTHONDONTWRITEBYTECODE": "1", **places}, check=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home", "temporary"]


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("batch", [1, 5])
def test_towers_match_numpy(make_artifact: Make, backend: Backend, batch: int) -> None:
    artifact, model = make_artifact(), make_model()
    pixels = random_pixels(batch)
    with open_session(artifact, graph_for(artifact, "image", backend), backend, threads=1) as session:
        embedding = session.run({"pixels": pixels})["embedding"]
    np.testing.assert_allclose(unit_rows(embedding), model.images(pixels), atol=1e-6)
    tokens = np.random.default_rng(0).integers(0, 10, (batch, CONTEXT)).astype(np.int32)
    with open_session(artifact, graph_for(artifact, "text", backend), backend, threads=1) as session:
        embedding = session.run({"tokens": tokens})["embedding"]
    np.testing.assert_allclose(unit_rows(embedding), model.texts(tokens), atol=1e-6)


@pytest.mark.parametrize("backend", CPU)
def test_int8_is_close_to_numpy(make_artifact: Make, backend: Backend) -> None:
    artifact, model = make_artifact(precisions=("fp32", "int8")), make_model()
    graph = graph_for(artifact, "image", backend)
    assert (graph.precision, graph.activations) == ("int8", "unsigned")
    pixels = random_pixels(8)
    with open_session(artifact, graph, backend, threads=1) as session:
        embedding = session.run({"pixels": pixels})["embedding"]
    cosine = (unit_rows(embedding) * model.images(pixels)).sum(axis=1)
    assert cosine.min() > 0.998
    assert cosine.max() < 1 - 1e-7


@pytest.mark.parametrize("backend", CPU)
def test_threads_that_share_a_session_get_their_own_answers(make_artifact: Make, backend: Backend) -> None:
    """Batches of two sizes: an OpenVINO request that two threads ran at once wrote into the arrays of both."""
    artifact = make_artifact()
    batches = [random_pixels(1 + 2 * (seed % 2), seed) for seed in range(8)]
    with open_session(artifact, graph_for(artifact, "image", backend), backend, threads=1) as session:
        expected = [session.run({"pixels": pixels})["embedding"] for pixels in batches]

        def own(number: int) -> bool:
            found = session.run({"pixels": batches[number % 8]})["embedding"]
            return np.array_equal(found, expected[number % 8])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(own, range(4000)))


@pytest.mark.parametrize("backend", CPU)
def test_results_belong_to_the_caller(make_artifact: Make, backend: Backend) -> None:
    artifact = make_artifact()
    with open_session(artifact, graph_for(artifact, "image", backend), backend, threads=1) as session:
        pixels = random_pixels(2)
        first = session.run({"pixels": pixels})["embedding"]
        kept = first.copy()
        session.run({"pixels": random_pixels(2, seed=1)})
        pixels[:] = 0
        np.testing.assert_array_equal(first, kept)
        sliced = random_pixels(4)[::2]
        np.testing.assert_allclose(
            session.run({"pixels": sliced})["embedding"],
            session.run({"pixels": sliced.copy()})["embedding"],
            rtol=1e-5,
        )


def test_openvino_computes_fp32_in_fp32(make_artifact: Make) -> None:
    artifact = make_artifact()
    graph = graph_for(artifact, "image", "openvino")
    with OpenVINOSession(artifact.file(graph.file), graph, threads=1) as session:
        assert session.precision == "f32"


def test_importing_openvino_loads_no_telemetry() -> None:
    code = (
        "import sys, socket\n"
        "from mmcompress.runtime.openvino import openvino_module\n"
        "def refuse(*a, **k): raise SystemExit('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "openvino_module()\n"
        "import openvino.tools.ovc.telemetry_utils as u\n"
        "print(u.tm.__name__, 'openvino_telemetry' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False", "False"]


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize(
    ("feeds", "what", "hint"),
    [
        ({"pixel": np.zeros(1)}, "no input 'pixel'", "did you mean 'pixels'"),
        ({}, "'pixels' was not given", r"float32 of shape \(N, 3, 8, 8\)"),
        ({"pixels": np.zeros((1, 3, 8, 8))}, r"'pixels' is float64 of shape \(1, 3, 8, 8\)", "expected float32"),
        (
            {"pixels": np.zeros((1, 3, 9, 8), np.float32)},
            "float32 of shape",
            r"expected float32 of shape \(N, 3, 8, 8\)",
        ),
        ({"pixels": np.zeros((3, 8, 8), np.float32)}, r"shape \(3, 8, 8\)", "expected float32"),
    ],
)
def test_wrong_feeds_are_named(
    make_artifact: Make, backend: Backend, feeds: dict[str, Any], what: str, hint: str
) -> None:
    artifact = make_artifact()
    with (
        open_session(artifact, graph_for(artifact, "image", backend), backend) as session,
        pytest.raises(UsageError, match=what) as caught,
    ):
        session.run(feeds)
    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize("backend", CPU)
def test_a_file_that_is_no_graph(make_artifact: Make, backend: Backend) -> None:
    artifact = make_artifact()
    graph = graph_for(artifact, "image", backend)
    artifact.file(graph.file).write_bytes(b"no graph")
    with pytest.raises(CorruptInputError, match=f"{backend} cannot load .*image-fp32.onnx") as caught:
        open_session(artifact, graph, backend)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("width", [SIDE + 1, 1 << 40])
def test_a_graph_of_other_images_than_its_manifest_says(make_artifact: Make, backend: Backend, width: int) -> None:
    artifact = make_artifact()
    graph = graph_for(artifact, "image", backend)
    path = artifact.file(graph.file)
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[-1].dim_value = width
    onnx.save(proto, path)
    with (
        pytest.raises(CorruptInputError, match=f"{backend} cannot (load|run) .*image-fp32.onnx"),
        open_session(artifact, graph, backend) as session,
    ):
        session.run({"pixels": random_pixels(1)})


@pytest.mark.parametrize("backend", CPU)
def test_a_manifest_that_says_another_interface(make_artifact: Make, backend: Backend) -> None:
    artifact = make_artifact()
    graph = graph_for(artifact, "image", backend)
    path = artifact.file(graph.file)
    proto = onnx.load(path)
    proto.graph.input[0].name = "images"
    proto.graph.node[0].input[0] = "images"
    onnx.save(proto, path)
    with pytest.raises(CorruptInputError, match="its manifest says 'pixels' of float32"):
        open_session(artifact, graph, backend)


def test_graph_for_names_what_is_missing(make_artifact: Make) -> None:
    artifact = make_artifact(precisions=("fp32",))
    with pytest.raises(UsageError, match=r"no image graph in int8 that openvino runs; it holds: fp32 \(float\)"):
        graph_for(artifact, "image", "openvino", "int8")
    with pytest.raises(UsageError, match="there is no backend 'openvin'") as caught:
        graph_for(artifact, "image", "openvin")  # type: ignore[arg-type]
    assert caught.value.hint == "did you mean 'openvino'?"
    with pytest.raises(UsageError, match="tensorrt-rtx runs no artifact of kind 'onnx'") as caught:
        graph_for(artifact, "image", "tensorrt-rtx")
    assert "mmcompress build" in caught.value.hint
    engine = make_artifact("engine", kind=Kind.ENGINE)
    with pytest.raises(UsageError, match="openvino runs no artifact of kind 'engine'"):
        graph_for(engine, "image", "openvino")


def test_cpu_backends_work_and_gpu_backends_say_why_not() -> None:
    backends = available_backends()
    assert backends["onnxruntime"] is None
    assert backends["openvino"] is None
    assert list(backends) == ["openvino", "onnxruntime", "tensorrt", "tensorrt-rtx"]
    assert default_backend() == "openvino"


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingRequirementError, match="'openvino', which cannot be imported") as caught:
        openvino_module()
    assert caught.value.hint == "pip install 'mmcompress[openvino]'"
    with pytest.raises(MissingRequirementError, match="no runtime for ONNX graphs works here: openvino: ") as caught:
        default_backend()
    assert caught.value.exit_code == 3
