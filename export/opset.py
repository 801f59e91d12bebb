"""Which versions of ONNX's operators the packages of this machine know."""

from __future__ import annotations

from mmcompress.config import ExportConfig
from mmcompress.errors import UsageError, require


def check_opset(config: ExportConfig) -> None:
    """Raise UsageError for a version of the operators that this machine's onnx or ONNX Runtime does not know."""
    oldest: int = ExportConfig.model_fields["opset"].default
    if config.opset <= oldest or _runs_here(config.opset):
        return
    names = (require("onnx", "compress"), require("onnxruntime", "onnxruntime"))
    below = min(config.opset - 1, names[0].defs.onnx_opset_version())
    newest = next(opset for opset in range(below, 0, -1) if opset <= oldest or _runs_here(opset))
    raise UsageError(
        f"opset {config.opset} is newer than what runs here: onnx {names[0].__version__} and ONNX Runtime "
        f"{names[1].__version__} know {newest}",
        f"give --opset {newest} or less; TensorRT and older runtimes know fewer",
    )


def _runs_here(opset: int) -> bool:
    """Whether a graph of one node can be written, and be opened by ONNX Runtime, which checks every export."""
    helper = require("onnx", "compress").helper
    if opset > require("onnx", "compress").defs.onnx_opset_version():
        return False
    one, said = helper.make_tensor_value_info, helper.make_opsetid("", opset)
    x, y = (one(name, 1, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", [x], [y])
    model = helper.make_model(graph, opset_imports=[said], ir_version=helper.find_min_ir_version_for([said]))
    try:
        require("onnxruntime", "onnxruntime").InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    except Exception:  # of a type of its own, which has no common base
        return False
    return True
