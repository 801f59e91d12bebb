"""`mmcompress triton`: its configs are what Triton's published protobuf takes, and say what the graphs say."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_artifact import MakeArtifact, make_artifact
from toy_model import CONTEXT, SIDE

from mmcompress.artifact import Artifact
from mmcompress.errors import UsageError
from mmcompress.export import triton
from mmcompress.export.triton import Choice, write_repository
from mmcompress.lock import locked
from mmcompress.manifest import Kind, TensorSpec
from mmcompress.runtime.passport import PASSPORTS

__all__ = ["make_artifact"]
Cli = Callable[..., Any]
PIP = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-q", "--no-deps"]
BUILT = {"backend": "tensorrt", "tensorrt": "10.13.3.9", "target": "sm87"}


@pytest.fixture(scope="session")
def model_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The text of a config.pbtxt -> the message ModelConfig, as NVIDIA's client has it; unknown fields are errors."""
    text_format = pytest.importorskip("google.protobuf.text_format", reason="needs protobuf")
    folder = tmp_path_factory.mktemp("tritonclient")
    done = subprocess.run([*PIP, "-d", str(folder), "tritonclient"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"tritonclient cannot be downloaded: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        path = Path(wheel.extract("tritonclient/grpc/model_config_pb2.py", folder))
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda text: text_format.Parse(text, module.ModelConfig())


def engine(make: MakeArtifact, targets: tuple[str, ...] = ("sm87",), backend: str = "tensorrt") -> Artifact:
    passport = {"built_on": {**BUILT, "backend": backend}, "profiles": [[1, 1, 1], [2, 8, 16]]}
    files = [f"image-fp32-{target}.onnx" for target in targets] + ["text-fp32.onnx"]
    facts = {"backend": backend, PASSPORTS: dict.fromkeys(files, passport)}
    return make("engine", facts=facts, kind=Kind.ENGINE, targets=targets)


def configs(out: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    return {path.parent.name: parse(path.read_text()) for path in out.glob("*/config.pbtxt")}


@pytest.mark.network
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_onnx_graphs(backend: str, make_artifact: MakeArtifact, tmp_path: Path, model_config: Any) -> None:
    source = make_artifact("it's ä model", precisions=("int8", "fp32"))
    write_repository(source, tmp_path / "repo", choice=Choice(backend))
    image, text, both = (
        configs(tmp_path / "repo", model_config)[f"it-s-model{end}"] for end in ("-image", "-text", "")
    )
    assert (image.backend, image.max_batch_size, image.default_model_filename) == (backend, 32, "model.onnx")
    assert (image.input[0].name, list(image.input[0].dims)) == ("pixels", [3, SIDE, SIDE])
    assert image.HasField("dynamic_batching") and image.instance_group[0].kind == image.instance_group[0].KIND_CPU
    assert (text.input[0].name, list(text.input[0].dims)) == ("tokens", [CONTEXT])
    assert image.input[0].data_type == 11 and text.input[0].data_type == 8
    assert both.platform == "ensemble" and not both.HasField("dynamic_batching")
    assert [tensor.name for tensor in both.input] == ["pixels", "tokens"]
    assert [tensor.name for tensor in both.output] == ["image_embedding", "text_embedding"]
    for step, model in zip(both.ensemble_scheduling.step, (image, text), strict=True):
        assert (step.model_name, step.model_version) == (model.name, -1)
        assert set(step.input_map) == {tensor.name for tensor in model.input}
        assert set(step.output_map) == {tensor.name for tensor in model.output}
        assert set(step.input_map.values()) <= {tensor.name for tensor in both.input}
        assert set(step.output_map.values()) <= {tensor.name for tensor in both.output}
    served = tmp_path / "repo" / image.name / "1" / "model.onnx"
    assert served.read_bytes() == source.file("image-int8.onnx").read_bytes()
    assert (tmp_path / "repo" / both.name / "1").is_dir()


@pytest.mark.network
def test_engines_have_their_own_batches_and_profiles(
    make_artifact: MakeArtifact, tmp_path: Path, model_config: Any
) -> None:
    models = write_repository(engine(make_artifact), tmp_path / "repo", "student")
    assert [(model.name, model.backend, model.max_batch) for model in models] == [
        ("student-image", "tensorrt", 16),
        ("student-text", "tensorrt", 16),
        ("student", "ensemble", 16),
    ]
    image = configs(tmp_path / "repo", model_config)["student-image"]
    assert (image.backend, image.default_model_filename) == ("tensorrt", "model.plan")
    (group,) = image.instance_group
    assert (group.kind, list(group.profile)) == (group.KIND_GPU, ["0", "1"])


@pytest.mark.network
def test_a_fixed_shape_is_whole_and_not_batched(model_config: Any) -> None:
    spec = TensorSpec(name='odd "name"\\', shape=(1, 3, None), dtype="uint8")
    parsed = model_config(f"input {triton._tensor(spec.name, spec, batched=False)}")
    assert (parsed.input[0].name, list(parsed.input[0].dims), parsed.input[0].data_type) == (spec.name, [1, 3, -1], 2)


def test_what_triton_does_not_serve_is_refused(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    graphs, out = make_artifact("graphs"), tmp_path / "repo"
    for source, choice, what in (
        (engine(make_artifact, backend="tensorrt-rtx"), Choice(), "no backend for the TensorRT-RTX engines"),
        (engine(make_artifact, ("sm86", "sm87")), Choice(), "has engines for sm86, sm87"),
        (engine(make_artifact), Choice("openvino"), "openvino serves no artifact of kind 'engine'"),
        (graphs, Choice("tensorrt"), "tensorrt serves no artifact of kind 'onnx'"),
        (graphs, Choice("pytorch"), "no backend 'pytorch'"),
        (graphs, Choice(precision="int4"), "no precision 'int4'"),
        (graphs, Choice(precision="int8"), "has no image graph in int8"),
        (graphs, Choice(target="sm87"), "which have no target"),
    ):
        with pytest.raises(UsageError, match=what):
            write_repository(Artifact.open(source.path) if source is graphs else source, out, choice=choice)
    for kind in (Kind.CHECKPOINT, Kind.REPORT):
        with pytest.raises(UsageError, match=f"kind '{kind.value}', which Triton does not serve"):
            write_repository(make_artifact(kind.value, kind=kind), out)
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "repo"):
        with pytest.raises(UsageError, match="file is a file, and a model repository is a folder"):
            write_repository(graphs, place)
    with pytest.raises(UsageError, match="is no name for a model"):
        write_repository(graphs, out, "../evil")
    assert not out.exists()


@pytest.mark.skipif(os.name == "nt", reason="it forks")
def test_a_kill_at_any_call_leaves_nothing_that_the_next_does_not_tidy(
    make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    graphs, out = make_artifact("graphs"), tmp_path / "repo"
    whole = {f"mine{end}" for end in ("", "-image", "-text")}
    write_repository(graphs, out, "mine")
    for moment in range(1, 1000):
        if (child := os.fork()) == 0:
            _die_at(moment)
            try:
                write_repository(graphs, out, "mine")
            finally:
                os._exit(0)
        died = os.waitpid(child, 0)[1] != 0
        write_repository(graphs, out, "mine")
        assert {path.name for path in out.iterdir()} == whole, moment
        if not died:
            break
    assert 30 < moment < 999, "moments at which it was killed"


def _die_at(moment: int) -> None:
    calls = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                os._exit(9)
            return call(*given, **named)

        return instead

    for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def test_two_do_not_write_one_model_at_once(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    graphs, out = make_artifact("graphs"), tmp_path / "repo"
    out.mkdir()
    with locked(out / "mine-text"), pytest.raises(UsageError, match="another mmcompress is running in"):
        write_repository(graphs, out, "mine")
    assert not list(out.iterdir())


@pytest.mark.parametrize("stranger", ["1/labels.txt", "2/model.onnx", "README", ".hidden"])
def test_a_file_put_into_a_model_is_not_deleted(make_artifact: MakeArtifact, tmp_path: Path, stranger: str) -> None:
    graphs, out = make_artifact("graphs"), tmp_path / "repo"
    write_repository(graphs, out, "mine")
    (out / "mine-image" / stranger).parent.mkdir(exist_ok=True)
    (out / "mine-image" / stranger).write_text("precious")
    with pytest.raises(UsageError, match="mine-image holds what mmcompress did not write"):
        write_repository(graphs, out, "mine")
    assert (out / "mine-image" / stranger).read_text() == "precious"


def test_models_of_others_stay(make_artifact: MakeArtifact, tmp_path: Path, cli: Cli) -> None:
    graphs, out = make_artifact("graphs"), tmp_path / "repo"
    other = out / "resnet" / "1"
    other.mkdir(parents=True)
    (out / "graphs-text").mkdir()
    (out / "graphs-text" / "config.pbtxt").write_text('name: "graphs-text"')
    with pytest.raises(UsageError, match="graphs-text holds what mmcompress did not write"):
        write_repository(graphs, out)
    assert {path.name for path in out.iterdir()} == {"resnet", "graphs-text"}
    for _ in range(2):
        done = cli("triton", graphs.path, "--out", out, "--name", "mine", "--json")
        assert [model["name"] for model in json.loads(done.out)] == ["mine-image", "mine-text", "mine"]
    assert {path.name for path in out.iterdir()} == {"resnet", "graphs-text", "mine-image", "mine-text", "mine"}
    assert "tritonserver --model-repository=" in cli("triton", graphs.path, "--out", out, "--name", "mine").out
