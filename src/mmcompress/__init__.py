"""The core, which all rooms share; mmcompress takes a large CLIP teacher to a small INT8 engine."""

import os

__version__ = "0.1.0"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when ONNX Runtime is imported, by whomever
