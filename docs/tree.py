"""Write the tree of architecture.md: every file with the first sentence of its docstring. `make docs` runs it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree: written by docs/tree.py -->\n```\n", "```\n<!-- end of tree -->"
ROOMS = (
    *("src/mmcompress", "src/mmcompress/config", "src/mmcompress/data", "runtime", "export"),
    *(
        "measure",
        "measure/bench",
        "measure/drift",
        "measure/explain",
        "measure/split",
        "measure/bisect",
        "measure/verdict",
    ),
    *("compress", "compress/train", "compress/prune", "compress/sizing", "compress/int8"),
    *("src/mmcompress/report", "src/mmcompress/report/page"),
    *("src/mmcompress/pipeline", "src/mmcompress/pipeline/standalone"),
    *("src/mmcompress/cli", "src/mmcompress/cli/commands"),
)
"""From the ground up: a package imports only from those above it in this list."""
COLUMN = 24


def first_sentence(path: Path) -> str:
    """Of a module's docstring, up to a full stop or a question mark."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.?])\s+(?=[A-Z`])", text)[0].rstrip(".")


def lines() -> Iterator[str]:
    for room in ROOMS:
        folder = ROOT / room
        yield f"\n{room}/".ljust(COLUMN + 1) + f"  {first_sentence(folder / '__init__.py')}".rstrip()
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py":
                yield f"  {path.name}".ljust(COLUMN) + f"  {first_sentence(path)}"


def page(text: str) -> str:
    """The page with a fresh tree."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:begin] + "\n".join(lines()).lstrip("\n") + "\n" + text[end:]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
