"""A recipe by its path or name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcompress.artifact import Artifact
from mmcompress.errors import UsageError, suggestion
from mmcompress.pipeline.recipe import SHARED_TABLES, load_recipe, parse_assignments
from mmcompress.pipeline.run import run_recipe, run_stages
from mmcompress.pipeline.sources import (
    NOTHING,
    Given,
)
from mmcompress.stages import STAGES

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe_path(recipe: str) -> Path:
    """A packaged recipe by its name (`demo`), else the path of a file."""
    path = Path(recipe)
    if path.is_file() or path.suffix == ".toml":
        return path
    packaged = {file.stem: file for file in RECIPES.glob("*.toml")}
    if recipe not in packaged:
        raise UsageError(
            f"there is no recipe {recipe!r}", f"give a .toml file, or a packaged one ({suggestion(recipe, packaged)})"
        )
    return packaged[recipe]


def run(recipe: str, out: Path, overrides: Sequence[str] = ()) -> dict[str, Artifact]:
    """Every stage of a recipe; the artifacts by name, in the recipe's order."""
    path = recipe_path(recipe)
    return run_recipe(load_recipe(path, parse_assignments(overrides)), out, str(path))


def train(recipe: str, out: Path, given: Given = NOTHING) -> Artifact:
    """A recipe whose last stage is `train`, with `out` as its artifact and what comes before it beside: `OUT-embed`.

    A key of `train` itself needs no `train.` before it.
    """
    path = recipe_path(recipe)
    own = STAGES["train"].config.model_fields.keys() - {*SHARED_TABLES}
    assignments = {f"train.{key}" if key.split(".")[0] in own else key: value for key, value in given.items()}
    loaded = load_recipe(path, assignments)
    last = loaded.stages[-1]
    if last.run != "train":
        raise UsageError(
            f"{path} ends with a stage that runs {last.run!r}", "`mmcompress train` wants `train` at the end"
        )
    places = {table.name: out.with_name(f"{out.name}-{table.name}") for table in loaded.stages} | {last.name: out}
    return run_stages(loaded, places, str(path))[last.name]
