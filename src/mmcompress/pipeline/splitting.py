"""The command `split`: an artifact of two graphs, or the table of what they cost on this machine.

It is no stage: what it writes rests on times of this machine, so nothing of it is reused.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from mmcompress.artifact import Artifact
from mmcompress.config import Precision
from mmcompress.data.batches import check_readable
from mmcompress.errors import UsageError, suggestion
from mmcompress.lock import locked
from mmcompress.manifest import Kind, hash_json
from mmcompress.measure.early import runnable
from mmcompress.measure.split.document import DeviceTimes, SplitDocument
from mmcompress.measure.split.plan import Line, bits_per_s
from mmcompress.measure.split.split import Judge, Wish, check_wish, devices_in
from mmcompress.measure.split.split import split as split_into
from mmcompress.pipeline.converted import check_named, graphs_to_use
from mmcompress.places import check_place, writing


def wished(
    device: str,
    bandwidth: str | None,
    rtt_ms: float,
    backend: str | None,
    precision: str | None,
    threads: int | None,
    judge: Judge,
    loopback: bool,
) -> Wish:
    """What the options say; UsageError for what they cannot mean."""
    if precision is not None and precision not in get_args(Precision):
        raise UsageError(f"there is no precision {precision!r}", suggestion(precision, get_args(Precision)))
    line = None if bandwidth is None else Line(bits_per_s(bandwidth), rtt_ms)
    wish = Wish(
        devices=devices_in(device),
        line=line,
        backend=runnable(backend),
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
    if wish.judge.data is not None:
        check_readable(wish.judge.data, 0.05)
    graphs = graphs_to_use(source, wish.backend)
    check_place(out, [graphs.path], "split")
    about = {"devices": wish.devices, "precision": wish.precision, "backend": wish.backend}
    with writing(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with locked(out, reading=[graphs.path]):
        parents = {"graphs": graphs.digest}
        key = hash_json({**about, **parents})
        made = Artifact.create(out, kind=Kind.BUNDLE, stage="split", key=key, config=about, parents=parents)
        with made as draft:
            document = split_into(graphs, wish, draft)
    return Artifact.open(out), document
