"""ONNX Runtime on the CPU: the reference runtime, and the one that exists on every platform.

One setting differs from its defaults: its idle threads stop spinning when a run ends. Otherwise they take the cores
from whatever else runs in the process, which falsifies an interleaved benchmark. Its exact kernels for x86 CPUs without
VNNI are not asked for, as the unsigned files are written so that 16 bits hold every pair of products.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from mmcompress.errors import CorruptInputError, require
from mmcompress.manifest import Graph
from mmcompress.runtime.session import Session, cannot_run, check_interface

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
}


def onnxruntime_module() -> ModuleType:
    return require("onnxruntime", "onnxruntime")


class OnnxRuntimeSession(Session):
    """Owns its weights until closed. Inputs are read during `run` only; outputs are fresh arrays."""

    def __init__(self, path: Path, graph: Graph, threads: int) -> None:
        ort = onnxruntime_module()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes have no public base
            raise CorruptInputError(
                f"onnxruntime cannot load {path}: {_first_line(error)}",
                "try another backend" + (", or precision fp32" if graph.precision != "fp32" else ""),
            ) from error
        self.inputs, self.outputs, self._path = graph.inputs, graph.outputs, path
        check_interface(graph.inputs, _dtypes(self._session.get_inputs()), path)
        check_interface(graph.outputs, _dtypes(self._session.get_outputs()), path)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [spec.name for spec in self.outputs]
        try:
            outputs = self._session.run(names, feeds)
        except MemoryError:
            raise
        except Exception as error:  # its graph takes other shapes than its manifest says
            raise cannot_run("onnxruntime", self._path, _first_line(error)) from error
        return dict(zip(names, outputs, strict=True))

    def close(self) -> None:
        self._session = None


def _dtypes(values: list[Any]) -> dict[str, str]:
    return {value.name: _DTYPES.get(value.type, value.type) for value in values}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
