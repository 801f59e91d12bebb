"""Weights beside a graph: the names that the package `onnx` writes, wherever they stand, and none unlisted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompress.artifact import Artifact
from mmcompress.besideonnx import files_beside
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Graph, Kind, TensorSpec


def outside(name: str, location: str) -> TensorProto:
    """A tensor whose weights lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(path: Path, location: str | None = "image.onnx.data", deeper: bool = False) -> Path:
    """x + weight; in a branch and in a function too where `deeper`."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    held = numpy_helper.from_array(np.ones(4, np.float32), "weight")
    weight = held if location is None else outside("weight", location)
    nodes = [helper.make_node("Add", ["x", "weight"], ["y"])]
    functions = []
    if deeper:
        branch = helper.make_graph([], "branch", [], [], [outside("inner", "in/branch.bin")])
        nodes.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
        constant = helper.make_node("Constant", [], ["k"], value=outside("k", "constant.bin"))
        functions = [helper.make_function("local", "f", [], ["k"], [constant], [helper.make_opsetid("", 17)])]
    graph = helper.make_graph(nodes, "g", [value], [result], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], functions=functions, ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def test_names_are_found_wherever_a_tensor_may_stand(tmp_path: Path) -> None:
    assert files_beside(model(tmp_path / "a.onnx", None)) == set()
    deep = files_beside(model(tmp_path / "b.onnx", "w.data", deeper=True))
    assert deep == {"w.data", "in/branch.bin", "constant.bin"}
    large = helper.make_model(helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.ones(4096), "w")]))
    onnx.save_model(large, str(tmp_path / "c.onnx"), save_as_external_data=True, location="c.data", size_threshold=0)
    assert files_beside(tmp_path / "c.onnx") == {"c.data"}


def test_what_is_no_message_names_nothing(tmp_path: Path) -> None:
    whole = model(tmp_path / "a.onnx").read_bytes()
    for content in (b"", b"no message", whole[: len(whole) // 2], b"\xff" * 40, b"\x3b" * 40):
        (tmp_path / "b.onnx").write_bytes(content)
        assert files_beside(tmp_path / "b.onnx") <= {"image.onnx.data"}
    (tmp_path / "b.onnx").write_bytes(b"\x0b\x08\x01\x0c" + whole)
    assert files_beside(tmp_path / "b.onnx") == {"image.onnx.data"}, "behind a group"


def with_graph(folder: Path, location: str, listed: bool) -> Path:
    spec = {"shape": (4,), "dtype": "float32"}
    with Artifact.create(folder, kind=Kind.ONNX, stage="export", key="k") as draft:
        model(draft.path / "image.onnx", location)
        draft.graphs.append(
            Graph(
                file="image.onnx",
                tower="image",
                precision="fp32",
                inputs=(TensorSpec(name="x", **spec),),
                outputs=(TensorSpec(name="y", **spec),),
            )
        )
        if listed:
            (draft.path / "image.onnx.data").write_bytes(bytes(16))
    return folder


def test_weights_that_no_manifest_lists_are_refused(tmp_path: Path) -> None:
    assert Artifact.open(with_graph(tmp_path / "whole", "image.onnx.data", listed=True)).path
    assert Artifact.open(with_graph(tmp_path / "dotted", "./image.onnx.data", listed=True)).path
    (tmp_path / "elsewhere.bin").write_bytes(bytes(16))
    for name, location in (("a", "image.onnx.data"), ("b", "../elsewhere.bin"), ("c", str(tmp_path / "elsewhere.bin"))):
        folder = with_graph(tmp_path / name, location, listed=False)
        (folder / "image.onnx.data").write_bytes(bytes(16))
        with pytest.raises(CorruptInputError, match=r"reads weights from .* does not list"):
            Artifact.open(folder)
