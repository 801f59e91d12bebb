"""Templates of text and Markdown, with the filters that write figures the same everywhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmcompress import __version__, formats

FILTERS = (
    *("percent", "percent_interval", "points", "count", "millions", "megabytes", "milliseconds", "times", "cosine"),
    *("compact", "millijoules", "decibels", "p_value", "decimal", "fact", "cell"),
)
CORE = Path(__file__).parent


def template_environment(folders: Sequence[Path], autoescape: bool) -> Environment:
    """Strict templates from some folders. Markdown is no HTML, so only a page escapes."""
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {name: getattr(formats, name) for name in FILTERS}
    environment.globals |= {"version": __version__, "backends": formats.BACKENDS, "absent": formats.ABSENT}
    return environment


@functools.cache
def _core() -> Environment:
    return template_environment([CORE], autoescape=False)


def render(template: str, **values: object) -> str:
    """A template of the core."""
    return _core().get_template(template).render(**values)
