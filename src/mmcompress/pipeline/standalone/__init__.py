"""A stage on its own, from its own command: the second of three hops from the command line to a stage.

A function here is a command. It opens the artifacts that the user named, makes one of what is none yet
(`converted.py`), finds those that the user did not name (`sources.py`), and hands them to `run_single`, which runs the
stage exactly as a recipe does; `routing.py` says which stage gets which key. `given` is what the user
said, by the keys of the stage's config, options and `--set` alike. It wins over what is found, and a None in it is a
None: what was not said is not in it. What cannot be found is an error that names the option to give.
"""

from mmcompress.pipeline.standalone.delivering import build, export
from mmcompress.pipeline.standalone.measuring import bench, bisect, compare, drift, page, report
from mmcompress.pipeline.standalone.quantizing import asks_verdict, qat, quantize, verdict, verdict_beside
from mmcompress.pipeline.standalone.recipes import recipe_path, run, train
from mmcompress.pipeline.standalone.sizing import Budget, bench_blocks, block_costs, size
from mmcompress.pipeline.standalone.training import (
    convert,
    distill,
    embed,
    ensemble,
    finetune,
    import_embeddings,
    prune,
    train_pair,
)

__all__ = [
    "Budget",
    "asks_verdict",
    "bench",
    "bench_blocks",
    "bisect",
    "block_costs",
    "build",
    "compare",
    "convert",
    "distill",
    "drift",
    "embed",
    "ensemble",
    "export",
    "finetune",
    "import_embeddings",
    "page",
    "prune",
    "qat",
    "quantize",
    "recipe_path",
    "report",
    "run",
    "size",
    "train",
    "train_pair",
    "verdict",
    "verdict_beside",
]
