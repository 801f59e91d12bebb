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
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mmcompress.artifact import Graph, TensorSpec
from mmcompress.errors import CorruptInputError, require
from mmcompress.runtime.session import Feeds, check_feeds

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


class OpenVINOSession:
    """Owns its weights and its request until closed. Inputs are read in place, during `run` only; outputs are copies,
    since OpenVINO's own buffers are overwritten by the next run."""

    max_batch: int | None = None

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
        except RuntimeError as error:
            raise CorruptInputError(
                f"openvino cannot load {path}: {_last_line(error)}",
                "try another backend" + (", or precision fp32" if graph.precision != "fp32" else ""),
            ) from error
        self.precision: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self._request: Any = compiled.create_infer_request()
        self.inputs = _agreed(graph.inputs, compiled.inputs, path)
        self.outputs = _agreed(graph.outputs, compiled.outputs, path)
        self.device = "CPU"

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        self._request.infer(check_feeds(feeds, self.inputs), share_inputs=True)
        return {spec.name: self._request.get_tensor(spec.name).data.copy() for spec in self.outputs}

    def close(self) -> None:
        self._request = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _agreed(specs: tuple[TensorSpec, ...], found: list[Any], path: Path) -> tuple[TensorSpec, ...]:
    """The manifest's specs, once the file turned out to have them."""
    dtypes = {name: np.dtype(port.get_element_type().to_dtype()).name for port in found for name in port.names}
    for spec in specs:
        if dtypes.get(spec.name) != np.dtype(spec.dtype).name:
            raise CorruptInputError(
                f"{path} has {dtypes}, and its manifest says {spec.name!r} of {spec.dtype}", "export the artifact again"
            )
    return specs


def _last_line(error: RuntimeError) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"
