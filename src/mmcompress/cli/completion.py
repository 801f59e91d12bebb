"""What a shell may complete: aliases of teachers, presets of students, artifacts, recipes, choices and keys.

Typer speaks to the shells (`mmcompress --install-completion`); here are the values. A shell asks at every press of a
key, so nothing here imports torch or opens a file. Where nothing fits, the shell completes files by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from mmcompress.places import MANIFEST

Complete = Callable[[str], list[str]]


def of(words: Iterable[str]) -> Complete:
    """Some words, known beforehand."""
    known = list(words)
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def artifacts(incomplete: str) -> list[str]:
    """Folders with a manifest, in the folder that is being named."""
    above, slash, begin = incomplete.rpartition("/")
    try:
        found = sorted(path.parent.name for path in Path(above or slash or ".").glob(f"*/{MANIFEST}"))
    except OSError:
        return []
    hidden = begin.startswith(".")
    return [f"{above}{slash}{name}" for name in found if name.startswith(begin) and (hidden or name[0] != ".")]


def teachers(incomplete: str) -> list[str]:
    from mmcompress.teachers import ALIASES

    return of([*ALIASES, "demo:teacher"])(incomplete)


def sources(incomplete: str) -> list[str]:
    """What takes an artifact or a teacher."""
    return artifacts(incomplete) + teachers(incomplete)


def students(incomplete: str) -> list[str]:
    from mmcompress.compress.train.presets import CONV_PRESETS, PRESETS

    return of([*PRESETS, *CONV_PRESETS, "inherit:0.25"])(incomplete)


def recipes(incomplete: str) -> list[str]:
    from mmcompress.pipeline.standalone.recipes import RECIPES

    beside = (str(path) for path in Path().glob("*.toml"))
    return of([*sorted(path.stem for path in RECIPES.glob("*.toml")), *sorted(beside)])(incomplete)


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys for `--set`: of a stage's command its own, of a recipe `STAGE.KEY`."""
    from mmcompress.cli.keys import keys_of
    from mmcompress.stages import STAGES

    if (command := ctx.info_name) is not None and command in STAGES:
        return of(f"{key.path}=" for key in keys_of(command))(incomplete)
    return of(f"{stage}.{key.path}=" for stage in STAGES for key in keys_of(stage))(incomplete)


BY_PATH = {"teacher.source": teachers, "student.source": students}
"""Of keys that are no choices but have words of their own."""
