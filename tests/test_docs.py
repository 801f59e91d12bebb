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


def anchor(heading: str) -> str:
    """What GitHub calls a heading in an address."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_into_a_page_leads_to_a_heading(page: Path) -> None:
    for target, place in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
        assert place in map(anchor, headings), f"{page.name} links to {target}#{place}"


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_times_of_a_convolutional_student_are_where_the_readme_leads_to(page: str) -> None:
    target, place = "benchmarks/results/mnv4_int8.md", r"[^)]+"
    said = re.search(rf"`mnv4-m`([^`]*)\({target}#({place})\)", (ROOT / page).read_text(encoding="utf-8"))
    assert said, f"{page} has no times of mnv4-m"
    sections = re.split(r"^## ", (ROOT / target).read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = (one for one in sections if anchor(one.splitlines()[0]) == said[2])
    measured = {
        f"{float(re.findall(pattern, section)[0]):{form}}"
        for pattern, form in (
            (r"\| mnv4-m int8, openvino \| ([\d.]+)", ".1f"),
            (r"\| vit-l14 fp32, openvino \| ([\d.]+)", ",.0f"),
            (r"\| vit-l14 fp32, openvino \| mnv4-m int8, openvino \| ([\d.]+)", ".0f"),
        )
    }
    assert measured <= set(re.findall(r"[\d,]+(?:\.\d+)?", said[1]))


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


def test_every_test_that_is_named_is_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 40
    assert [name for name in named if f"def {name}(" not in tests] == []


def commands(page: Path) -> list[str]:
    """What the blocks of a page tell a reader to type, without comments."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [said for block in blocks for line in block.splitlines() if (said := re.sub(r"\s+# .*", "", line).strip())]


def test_the_readme_is_the_same_in_both_languages() -> None:
    ours, theirs = ROOT / "README.md", ROOT / "README.zh-CN.md"
    texts = [page.read_text(encoding="utf-8") for page in (ours, theirs)]
    assert commands(ours) == commands(theirs) and len(commands(ours)) > 30
    sections, figures, links = (
        [re.findall(pattern, text, re.MULTILINE) for text in texts]
        for pattern in (r"^#+ ", r"^\| \**(?:teacher|distilled|pruned|recovered|int8).*", r"\]\(([^)]+)\)")
    )
    assert sections[0] == sections[1]
    assert figures[0] == figures[1] and len(figures[0]) == 5
    assert {*links[0]} - {"README.zh-CN.md"} == {*links[1]} - {"README.md"}


DECISIONS, _, MEASUREMENTS = (ROOT / "docs/decisions.md").read_text(encoding="utf-8").partition("\n## Measurements\n")


def decisions() -> list[tuple[str, str]]:
    """The id and the text of every decision: an item of a list, with the lines that are indented below it."""
    items = re.findall(r"^- .*(?:\n  .*)*", DECISIONS, re.MULTILINE)
    found = [(re.match(r"- \*\*([A-Z]\d+) ", item), item) for item in items]
    assert found and all(number for number, _ in found), "a decision begins with its id: - **S1 …**"
    return [(number[1], item) for number, item in found if number]


def test_every_decision_is_short_and_names_a_file_that_is_there() -> None:
    numbers = [number for number, _ in decisions()]
    assert len(numbers) == len(set(numbers))
    for number, item in decisions():
        lines = item.splitlines()
        assert len(lines) <= 3 and max(map(len, lines)) <= 120, number
        files = re.findall(r"`([\w/]+\.(?:py|toml|txt))`", item)
        assert files, f"{number} names no file"
        for name in files:
            assert any((root / name).is_file() for root in (ROOT, ROOT / "src/mmcompress")), f"{number} names {name}"


def test_every_table_of_measurements_belongs_to_a_decision_that_leads_to_it() -> None:
    tables = re.findall(r"^### (\w+) ", MEASUREMENTS, re.MULTILINE)
    texts = dict(decisions())
    assert len(tables) == len(set(tables))
    assert [table for table in tables if f"Table {table}." not in " ".join(texts[table].split())] == []
    assert set(re.findall(r"Table (\w+)\.", " ".join(DECISIONS.split()))) == set(tables)
