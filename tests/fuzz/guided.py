"""Coverage-guided fuzzing of one door by atheris (libFuzzer), which comes upon inputs that chance does not:

    pip install atheris
    python tests/fuzz/guided.py shard -max_total_time=600

A crash leaves its input in a file `crash-…` of the working folder. Documents are spoiled as their JSON text.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "worlds")]
with atheris.instrument_imports(include=["mmcompress"]):
    import doors

    from mmcompress.errors import MMCompressError


def main() -> None:
    door = next((door for door in doors.DOORS if door.name in sys.argv[1:2]), None)
    if door is None:
        sys.exit(f"usage: guided.py DOOR [options of libFuzzer], DOOR one of {', '.join(d.name for d in doors.DOORS)}")
    folder = Path(tempfile.mkdtemp(prefix="guided-"))
    with atheris.instrument_imports(include=["mmcompress"]):
        good = door.good(folder)
        door.enter(folder, good)
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(good if door.kind == "bytes" else json.dumps(good).encode())

    def attack(content: bytes) -> None:
        spoiled = content
        if door.kind == "document":
            try:
                spoiled = json.loads(content)
            except (ValueError, RecursionError):
                return
        with contextlib.suppress(MMCompressError):
            door.enter(folder, spoiled)

    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], attack)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
