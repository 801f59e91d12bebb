"""How fast: latency, memory, energy and load, interleaved in one run."""
