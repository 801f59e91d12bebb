"""Student -> files: ONNX graphs in each precision, TensorRT engines, and the teacher's own ONNX as a baseline."""
