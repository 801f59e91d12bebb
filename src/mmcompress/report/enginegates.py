"""Gates of engines: sizes, kernels and fall-backs of each file, of a report or of an engine artifact by itself. Pure.

A CI without a GPU builds engines of TensorRT-RTX and cannot run them. What it can hold against a budget is what the
build says: how large they are, how many kernels one call starts, and whether a Linear left its 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmcompress.errors import UsageError
from mmcompress.gates import CHOOSING, ENGINES, Gates
from mmcompress.report.document import GateVerdict
from mmcompress.report.parts import Engine, EngineFile

FALLBACKS = "fallbacks"


def engine_verdicts(engines: Sequence[Engine], limits: Mapping[str, float]) -> list[GateVerdict]:
    """A verdict for each upper limit and file."""
    files = [(engine, file) for engine in engines for file in engine.files]
    return [
        verdict
        for name, limit in limits.items()
        for verdict in [_verdict(name, limit, engine, file) for engine, file in files] or [_absent(name, limit)]
    ]


def judged_engine(engine: Engine, gates: Gates) -> list[GateVerdict]:
    """An artifact of engines by itself: no Linear may have left its 8 bits, whatever else is asked.

    Raises UsageError for a limit on what only a report has.
    """
    others = [name for name in (*gates.max, *gates.min, *gates.max_drop) if name not in ENGINES]
    if others or gates.min or gates.min_speedup is not None:
        raise UsageError(
            f"{engine.name} holds engines, of which there is no {others[0] if others else 'speed-up'}",
            f"upper limits on {', '.join(ENGINES)} are for engines; judge a report for the rest",
        )
    if chosen := sorted(gates.model_fields_set & CHOOSING):
        raise UsageError(
            f"{chosen[0]} chooses a part of a report, and {engine.name} holds engines", f"leave --{chosen[0]} out"
        )
    return engine_verdicts([engine], {FALLBACKS: 0.0, **gates.max})


def _figure(file: EngineFile, name: str) -> float | None:
    if name == "engine_bytes":
        return file.bytes
    if file.audit is None:
        return None
    return file.audit.layers if name == "kernels" else len(file.audit.not_int8)


def _verdict(name: str, limit: float, engine: Engine, file: EngineFile) -> GateVerdict:
    value = _figure(file, name)
    note = f"{file.tower}, {file.precision}, {file.target}, {engine.backend} {engine.version}"
    if name == FALLBACKS and file.audit is not None and file.audit.not_int8:
        note = f"{note}: {', '.join(file.audit.not_int8)}"
    return GateVerdict(
        gate=f"max {name}",
        row=file.file,
        value=value,
        limit=limit,
        passed=value is not None and value <= limit,
        significant=None,
        interval=None,
        note=note if value is not None else f"not measured; {note}",
    )


def _absent(name: str, limit: float) -> GateVerdict:
    return GateVerdict(
        gate=f"max {name}",
        row="engines",
        value=None,
        limit=limit,
        passed=False,
        significant=None,
        interval=None,
        note="not measured; there are no engines",
    )
