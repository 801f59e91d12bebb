"""Recipes: TOML with `--set` on top becomes checked configs, before anything runs.

The tables `[data]`, `[teacher]` and `[student]` are shared: each stage whose config has one of them inherits it, and
what its own `[[stage]]` table says goes first. A stage keeps of the data only what it reads, so that changing a test
set does not train again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcompress.config import DataConfig, StageConfig, validated
from mmcompress.errors import UsageError, suggestion
from mmcompress.frozen import Config
from mmcompress.stages import STAGES, Stage
from mmcompress.strictjson import json_from_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHARED_TABLES = ("data", "teacher", "student")
_NAME = re.compile(r"\w[\w .+-]*")
DATA_FIELDS = ("train", "validation", "test", "original", "labels", "templates")
"""The specifications in a data table."""


class StageTable(Config):
    """One `[[stage]]` table: which function, under which name, from which earlier artifacts."""

    run: str
    name: str
    """Of its artifact, which is the folder's too."""
    sources: dict[str, str]
    """Names of earlier stages, by the role that their artifact has here."""
    config: dict[str, Any]


class Recipe(Config):
    """The tables of a recipe."""

    data: dict[str, Any]
    """What is read: keys of `DataConfig`."""
    teacher: dict[str, Any]
    """Keys of `TeacherConfig`."""
    student: dict[str, Any]
    """Keys of `StudentConfig`."""
    stages: tuple[StageTable, ...]


def load_recipe(path: Path, assignments: Mapping[str, Any] | None = None) -> Recipe:
    """Read, override and check a recipe; every stage's config is validated before the first one runs."""
    return recipe_of(read_recipe(path), str(path), assignments)


def recipe_of(tables: dict[str, Any], path: str, assignments: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that some tables say, `assignments` over them; `path` is where they stand."""
    known = {*SHARED_TABLES, "stage"}
    for key in tables:
        if key not in known:
            raise UsageError(f"{path}: unknown table [{key}]", suggestion(key, known))
    rows = tables.get("stage")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} has no [[stage]] tables", 'add at least one: [[stage]] with run = "distill"')
    for key, value in (assignments or {}).items():
        _override(tables, rows, key, value)
    stages = tuple(_stage_table(row, path) for row in rows)
    names = [stage.name for stage in stages]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"{path}: two stages are named {repeated[0]!r}", 'give one of them another `name = "…"`')
    recipe = validated(Recipe, {**{name: tables.get(name, {}) for name in SHARED_TABLES}, "stages": stages}, path)
    for stage in stages:
        stage_config(recipe, stage, path)
    return recipe


def _override(tables: dict[str, Any], rows: Sequence[dict[str, Any]], key: str, value: object) -> None:
    head, *rest = key.split(".")
    named = [row for row in rows if head in (row.get("name", row.get("run")), row.get("run"))]
    if head in SHARED_TABLES or (named and not rest):
        if not rest:
            what = "a table" if head in SHARED_TABLES else "a stage"
            raise UsageError(
                f"--set {key}: {head!r} is {what}, and a key of it is set", f"for example: --set {head}.KEY=VALUE"
            )
        if not isinstance(table := tables.setdefault(head, {}), dict):
            raise UsageError(f"--set {key}: {head} = {table!r} in the recipe is no table", f"write [{head}] there")
        assign(table, rest, value)
    elif named and rest:
        for row in named:
            assign(row, rest, value)
    else:
        heads = {*SHARED_TABLES, *(str(row.get("name", row.get("run"))) for row in rows)}
        raise UsageError(f"--set {key}: no table or stage {head!r} in the recipe", suggestion(head, heads))


def _stage_table(row: Mapping[str, Any], path: str) -> StageTable:
    run = row.get("run")
    if not isinstance(run, str) or run not in STAGES:
        raise UsageError(f"{path}: [[stage]] run = {run!r} is no stage", suggestion(str(run), STAGES))
    roles = STAGES[run].consumes
    values = {
        "run": run,
        "name": row.get("name", run),
        "sources": {role: row[role] for role in roles if role in row},
        "config": {k: v for k, v in row.items() if k not in {"run", "name", *roles}},
    }
    table = validated(StageTable, values, f"{path}: stage {run!r}")
    if not _NAME.fullmatch(table.name):
        raise UsageError(
            f"{path}: a stage is named {table.name!r}, and its artifact is the folder of that name in --out",
            'give it a name of letters, digits, "-", "_" and ".", that begins with a letter or a digit',
        )
    return table


def stage_config(recipe: Recipe, table: StageTable, where: str) -> StageConfig:
    """The stage's own config, completed by the shared tables and reduced to what it depends on."""
    stage = STAGES[table.run]
    values = dict(table.config)
    for shared in SHARED_TABLES:
        inherited = getattr(recipe, shared)
        own = values.get(shared, {})
        if shared in stage.config.model_fields and inherited and isinstance(own, dict):
            values[shared] = {**inherited, **own}
    built = validated(stage.config, values, f"{where}: stage {table.name!r}")
    return reduced(built, stage)


def reduced(built: StageConfig, stage: Stage) -> StageConfig:
    """Blank the data fields that the stage does not read, so that changing them does not run it again."""
    data = getattr(built, "data", None)
    if not isinstance(data, DataConfig):
        return built
    unread = {*DATA_FIELDS} - set(stage.reads)
    return built.model_copy(update={"data": data.model_copy(update=dict.fromkeys(unread))})


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["prune.mlp=0.4"]` -> `{"prune.mlp": 0.4}`; what is no JSON is a string; the last of one key counts."""
    parsed: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text!r} is not KEY=VALUE", "for example: --set prune.mlp=0.4")
        try:
            parsed[key.strip()] = json_from_text(value)
        except ValueError:
            parsed[key.strip()] = value
    return parsed


def assign(table: dict[str, Any], path: Sequence[str], value: object) -> None:
    """Set a nested key, making the tables on the way. Raises UsageError where a value stands on it."""
    holder: object = table
    for index, part in enumerate(path):
        if not isinstance(holder, dict):
            before = path[index - 1] if index else "what it is in"
            raise UsageError(f"--set {'.'.join(path)}: {before!r} is a value, not a table", "name a key that exists")
        if index == len(path) - 1:
            holder[part] = value
        holder = holder.setdefault(part, {})


def read_recipe(path: Path) -> dict[str, Any]:
    """The TOML of a recipe, unchecked."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # editors of Windows put a mark before it
    except FileNotFoundError as error:
        raise UsageError(f"there is no recipe {path}", "give a .toml file, or `demo`") from error
    except (ValueError, RecursionError, IsADirectoryError) as error:  # a number of 5,000 digits is a ValueError too
        said = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(
            f"{path} is not TOML: {said}", "a recipe has [data], [teacher], [student] and [[stage]] tables"
        ) from error
