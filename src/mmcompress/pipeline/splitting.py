"""The command `split`: an artifact of two graphs, or the table of what they cost on this machine.

It is no stage: what it writes rests on times of this machine, so nothing of it is reused.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, Precision
from mmcompress.data.batches import check_readable
from mmcompress.errors import UsageError, of_choices
from mmcompress.lock import locked
from mmcompress.manifest import Kind, hash_json
from mmcompress.measure.split.document import DeviceTimes, SplitDocument
from mmcompress.measure.split.plan import Line, bits_per_s
from mmcompress.measure.split.split import HERE, Judge, Wish, check_wish, devices_in
from mmcompress.measure.split.split import split as split_into
from mmcompress.pipeline.converted import check_named, graphs_to_use, is_artifact
from mmcompress.places import check_place, inside_folders
from mmcompress.runtime.backends import check_runs_graphs, default_backend


def judge(data: str | None, samples: int | None, max_flips: float | None) -> Judge | None:
    """What INT8 is judged by; UsageError for what says how, without pairs."""
    if data is None and (samples is not None or max_flips is not None):
        raise UsageError("INT8 is judged on pairs, and none are given", "give --data, or leave the budget out")
    budget = 0.02 if max_flips is None else float(max_flips)
    return None if data is None else Judge(data, 256 if samples is None else samples, budget)


def line(bandwidth: str | None, rtt_ms: float | None) -> Line | None:
    """What lies between the devices; UsageError for a round trip on nothing."""
    if bandwidth is None and rtt_ms is not None:
        raise UsageError("--rtt-ms is of a line, and none is given", "say how fast it is: --bandwidth 20Mbps")
    return None if bandwidth is None else Line(bits_per_s(bandwidth), float(rtt_ms or 0))


def wished(
    device: str,
    line: Line | None,
    backend: str | None,
    precision: str | None,
    threads: int | None,
    judge: Judge | None,
    loopback: bool,
) -> Wish:
    """What the options say; UsageError for what they cannot mean."""
    if precision is not None and precision not in get_args(Precision):
        raise UsageError(f"there is no precision {precision!r}", of_choices(precision, get_args(Precision)))
    if backend is not None:
        check_runs_graphs(backend)
    wish = Wish(
        devices=devices_in(device),
        line=line,
        backend=default_backend() if backend is None else cast(Backend, backend),
        precision=cast(Precision | None, precision),
        threads=threads,
        judge=judge,
        loopback=loopback,
    )
    check_wish(wish)
    return wish


def split(source: str, out: Path, wish: Wish) -> tuple[Artifact, SplitDocument | DeviceTimes]:
    """The artifact at `out`, and its document."""
    check_named(source)
    if wish.judge is not None:
        check_readable(wish.judge.data, 0.05)
    folders = [Path(place).parent for place in wish.devices.values() if place != HERE]
    tables = [folder for folder in folders if is_artifact(folder)]  # a table alone may lie anywhere
    check_place(out, tables, "split")
    graphs = graphs_to_use(source, wish.backend)
    check_place(out, [*tables, graphs.path], "split")
    about = {"devices": wish.devices, "precision": wish.precision, "backend": wish.backend}
    with inside_folders(out), locked(out, reading=[graphs.path]):
        parents = {"graphs": graphs.digest}
        key = hash_json({**about, **parents})
        made = Artifact.create(out, kind=Kind.BUNDLE, stage="split", key=key, config=about, parents=parents)
        with made as draft:
            document = split_into(graphs, wish, draft)
    return Artifact.open(out), document
