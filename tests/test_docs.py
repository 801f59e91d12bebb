"""Pages that are written from the code are fresh, and what pages point at is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from check_wheel import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_tree_of_the_architecture_is_fresh() -> None:
    tree = runpy.run_path(str(ROOT / "docs/tree.py"))
    text = tree["PAGE"].read_text(encoding="utf-8")
    assert tree["page"](text) == text, "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [ROOT / "docs/architecture.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    """`room/file.py`, or a file of the core."""
    text = (
        page.read_text(encoding="utf-8").split("<!-- tree")[0]
        + page.read_text(encoding="utf-8").split("of tree -->")[-1]
    )
    for name in re.findall(r"`([\w/]+\.py)`", text):
        places = [ROOT / name, ROOT / "src/mmcompress" / name]
        assert any(place.exists() for place in places) or list(ROOT.rglob(f"*/{name}")), f"{page.name} names {name}"
