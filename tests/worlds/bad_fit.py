"""A quantized checkpoint made worse: every range too wide, and a product in float, for what is to mend it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from mmcompress.artifact import Artifact
from mmcompress.int8 import INTEGERS, read_ranges
from mmcompress.manifest import Kind


def badly_fitted(plain: Artifact, place: Path, times: float, kept: str | None = None) -> Artifact:
    """`plain` with ranges so many times too wide; of `kept` there are neither integers nor a range."""
    with Artifact.create(
        place,
        kind=Kind.CHECKPOINT,
        stage="quantize",
        key="k",
        config=plain.manifest.config,
        parents=plain.manifest.parents,
    ) as draft:
        draft.inherit(plain, *plain.manifest.files)
        found = {name: ends for name, ends in read_ranges(plain).items() if name.removesuffix(".output") != kept}
        wide = {name: {end: times * value for end, value in ends.items()} for name, ends in found.items()}
        (draft.path / "ranges.json").write_text(json.dumps(wide))
        draft.facts = plain.manifest.facts
        if kept is not None:
            integers = load_file(plain.file(INTEGERS))
            (draft.path / INTEGERS).unlink()
            save_file({n: x for n, x in integers.items() if f"/{kept}" not in n}, draft.path / INTEGERS)
            rows = [{"module": kept, "drift": 1.0, "kept": True}]
            draft.facts = {**plain.manifest.facts, "kept": [kept], "sensitivity": rows}
    return Artifact.open(place)
