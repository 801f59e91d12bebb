"""OpenVINO on the CPU: the fastest runtime for INT8 graphs on x86, with unsigned activations.

It is told the precision: left alone, it computes FP32 graphs in bfloat16 on CPUs that have it (errors of 1% in an
embedding), and a latency or a drift figure would be of another model than the file says. The Linears of an INT8 graph
are INT8 all the same, as Q/DQ says; the rest is FP32. The batch stays a free axis: fixing it to 1 or 8 was measured at
1.01 times the speed, within the noise, and needs the weights once more for each batch.

Importing the `openvino` package sends a usage event to Google Analytics. A device has to stay quiet, so its telemetry
package is hidden during the import and OpenVINO falls back to the stub that it has for that case.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import CorruptInputError, require
from mmcompress.manifest import Graph
from mmcompress.runtime.session import Session, cannot_run, check_interface

_TELEMETRY = "openvino_telemetry"


def openvino_module() -> ModuleType:
    """The `openvino` package, imported without its telemetry."""
    modules: dict[str, Any] = sys.modules
    hide = "openvino" not in modules and _TELEMETRY not in modules
    if hide:
        modules[_TELEMETRY] = None  # makes `import openvino_telemetry` an ImportError
    try:
        return require("openvino", "openvino")
    finally:
        if hide:
            modules.pop(_TELEMETRY, None)


class OpenVINOSession(Session):
    """Owns its weights and its request until closed. Inputs are read in place, during `run` only; outputs are copies,
    since OpenVINO's own buffers are overwritten by the next run. Threads may share it and take turns: a request that
    two run at once mixes their arrays up, and writes beyond them."""

    def __init__(self, path: Path, graph: Graph, threads: int) -> None:
        ov = openvino_module()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            compiled = ov.Core().compile_model(str(path), "CPU", settings)
        except (RuntimeError, ValueError) as error:  # a name in the file that is no text is a ValueError
            raise CorruptInputError(
                f"openvino cannot load {path}: {_last_line(error)}",
                "try another backend" + (", or precision fp32" if graph.precision != "fp32" else ""),
            ) from error
        self.precision: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self._turn = threading.Lock()
        self._request: Any = compiled.create_infer_request()
        self.inputs, self.outputs, self._path = graph.inputs, graph.outputs, path
        check_interface(graph.inputs, _dtypes(compiled.inputs), path)
        check_interface(graph.outputs, _dtypes(compiled.outputs), path)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with self._turn:
            try:
                self._request.infer(feeds, share_inputs=True)
            except RuntimeError as error:  # its graph takes other shapes than its manifest says
                raise cannot_run("openvino", self._path, _last_line(error)) from error
            return {spec.name: self._request.get_tensor(spec.name).data.copy() for spec in self.outputs}

    def close(self) -> None:
        with self._turn:
            self._request = None


def _dtypes(ports: list[Any]) -> dict[str, str]:
    return {name: np.dtype(port.get_element_type().to_dtype()).name for port in ports for name in port.names}


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"
