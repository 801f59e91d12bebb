"""Which file to ship on a backend: FP32, FP16 and the INT8 candidates, raced."""
