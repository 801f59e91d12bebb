"""Which file to ship on a backend: the float graphs and the INT8 candidates, raced."""
