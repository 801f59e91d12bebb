"""Which of a command's stages a key is for: what was said reaches every stage that has the key, and nothing is dropped.

A command may run other stages before its own: `prune vit-b32` converts and embeds first. A key goes to each of them
that has it with the same meaning, `data.max_bad_fraction` or `device` say. Where two stages mean different things by
one name, the plain name is the command's own stage's, and `embed.batch` that of another one alone. A key of a stage
that has nothing to do is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mmcompress.artifact import Artifact
from mmcompress.errors import UsageError
from mmcompress.pipeline.recipe import SHARED_TABLES
from mmcompress.pipeline.sources import Given
from mmcompress.stages import STAGES

NONE_IDLE: Mapping[str, str] = {}


def routed(given: Given, *running: str, idle: Mapping[str, str] = NONE_IDLE) -> dict[str, dict[str, Any]]:
    """What each running stage is given, the command's own first; `idle` are its other stages and why they do not run.

    What no stage has goes to the command's own, whose config names what is close to it.
    """
    to: dict[str, dict[str, Any]] = {stage: {} for stage in running}
    for key, value in given.items():
        head, _, rest = key.partition(".")
        if head in running and rest:
            continue
        if head in idle and rest:
            raise _nothing_to_do(running[0], key, head, idle[head])
        takers = [stage for stage in running if _takes(stage, running[0], key)]
        if not takers:
            if idler := next((stage for stage in idle if field_of(STAGES[stage].config, key)), None):
                raise _nothing_to_do(running[0], key, idler, idle[idler])
            takers = [next((stage for stage in running if head in STAGES[stage].config.model_fields), running[0])]
        for stage in takers:
            to[stage][key] = value
    for key, value in given.items():
        head, _, rest = key.partition(".")
        if head in running and rest:
            to[head][rest] = value
    return to


def routed_with_source(
    given: Given, own: str, source: Artifact | None, *also: str, idle: Mapping[str, str] = NONE_IDLE
) -> dict[str, dict[str, Any]]:
    """As `routed`, of a command whose source is converted first where it is no artifact."""
    if source is None:
        return routed(given, own, *also, "convert", idle=idle)
    return routed(given, own, *also, idle={**idle, "convert": f"{source.path} is an artifact"})


def _takes(stage: str, own: str, key: str) -> bool:
    field = field_of(STAGES[stage].config, key)
    first = field_of(STAGES[own].config, key)
    return field is not None and (first is None or key.split(".")[0] in SHARED_TABLES or same(field, first))


def same(a: FieldInfo, b: FieldInfo) -> bool:
    """Whether two configs mean the same by a key: its type, its words and its default are equal."""
    return (a.annotation, a.description, a.default) == (b.annotation, b.description, b.default)


def field_of(model: type[BaseModel], key: str) -> FieldInfo | None:
    """The field at a dotted key; None where a config has none."""
    head, _, rest = key.partition(".")
    field = model.model_fields.get(head)
    if field is None or not rest:
        return field
    kinds = (field.annotation, *get_args(field.annotation))
    table = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return None if table is None else field_of(table, rest)


def _nothing_to_do(command: str, key: str, stage: str, why: str) -> UsageError:
    return UsageError(
        f"mmcompress {command}: {key} is a key of {stage}, which has nothing to do here: {why}", "leave it out"
    )
