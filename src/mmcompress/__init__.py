"""mmcompress: from a large CLIP teacher to a small INT8 engine, with a report of what each step cost and bought."""

__version__ = "0.1.0"
