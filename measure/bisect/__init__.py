"""Where it leaves FP32: module by module."""
