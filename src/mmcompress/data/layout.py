"""Evaluation sets that bring their classes along: folders of images, and the shards that CLIP_benchmark writes.

CLIP_benchmark's layout is `DIR/test/*.tar`, its samples with a `.cls` (the number of the class) beside each image, and
beside `test/` the lists `classnames.txt` and `zeroshot_classification_templates.txt`, one entry a line. A retrieval set
says so in `dataset_type.txt`, and its `.txt` hold one caption a line. Here the lists are read; which sample has which
class is reading.py's. Two classes of one name are one class here, as no text can tell them apart. Left out: sets with
several classes an image (`.npy`), whose measure is another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mmcompress.data.spec import CLASSNAMES, DATASET_TYPE, TEMPLATES, expand, is_stream, settings_beside
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.home import expanded
from mmcompress.packaged import packaged
from mmcompress.progress import say

RETRIEVAL = "retrieval"
SHOWN = 8
"""Classes that are named to the user."""
LABEL_PLACES = ("{c}", "{}")
"""Where a template takes the label: CLIP_benchmark's spelling, and Python's."""


def class_names(spec: str) -> list[str] | None:
    """The classes that a test set has by itself, in its own order, each once; None where it has captions."""
    places = expand(spec)
    if (folders := _class_folders(places)) is not None:
        return folders
    names = [numbered_classes(place) for place in places]
    if any(classes is None for classes in names):
        return None
    return list(dict.fromkeys(name for classes in names for name in classes or ()))


def say_classes(spec: str | None) -> None:
    """Say what folders of images were taken for: photos by year look like two classes as well."""
    names = None if spec is None else _class_folders(expand(spec))
    if spec is not None and names is not None:
        shown = [*names[:SHOWN], *(["…"] if len(names) > SHOWN else [])]
        classes = "one class" if len(names) == 1 else f"{len(names)} classes"
        say("", "data", f"{spec} was taken for {classes}, whose names are the captions: {', '.join(shown)}")


def _class_folders(places: Sequence[str]) -> list[str] | None:
    """The names of folders of images, each once; None where anything else is among the places."""
    if any(is_stream(place) or not Path(place).is_dir() for place in places):
        return None
    return list(dict.fromkeys(Path(place).name for place in places))


def numbered_classes(place: str) -> list[str] | None:
    """What the numbers in the `.cls` of a shard stand for; None where it has none."""
    settings = settings_beside(place)
    if CLASSNAMES not in settings or is_retrieval(place):
        return None
    lines = _text(settings[CLASSNAMES], "one class a line").rstrip().splitlines()
    names = [line.strip() for line in lines]
    if not names or not all(names):
        where = names.index("") + 1 if names else 1
        raise CorruptInputError(
            f"line {where} of {settings[CLASSNAMES]} is empty", "classes are numbered by their lines: name each"
        )
    return names


def is_retrieval(place: str) -> bool:
    """Whether a shard belongs to a set in which a `.txt` holds one caption a line."""
    settings = settings_beside(place)
    return DATASET_TYPE in settings and read_lines(settings[DATASET_TYPE], "type", "`retrieval`")[0] == RETRIEVAL


def own_templates(spec: str) -> list[str]:
    """The prompt templates that lie beside a test set; none where there are none."""
    templates = [settings_beside(place).get(TEMPLATES) for place in expand(spec)]
    return checked_templates(templates[0]) if templates and templates[0] is not None else []


def read_labels(spec: str) -> list[str]:
    """Candidate texts, one a line, each once; `demo:names` are those that ship. One has nothing to be confused with."""
    path = _list_at(spec, "one label a line")
    labels = list(dict.fromkeys(read_lines(path, "labels", "one label a line")))
    if len(labels) < 2:
        raise UsageError(f"{path} lists one label, {labels[0]!r}, which every image gets", "give two or more")
    return labels


def read_sentences(spec: str) -> list[str]:
    """Sentences that images are placed among, one a line, each once; `demo:names` are names that ship."""
    path = _list_at(spec, "one sentence a line")
    said = list(dict.fromkeys(read_lines(path, "sentences", "one sentence a line")))
    if len(said) < 2:
        raise UsageError(f"{path} has one sentence, {said[0]!r}, which says nothing of any image", "give two or more")
    return said


def read_templates(spec: str) -> list[str]:
    """Prompt templates, one a line, each with a place for the label."""
    return checked_templates(_list_at(spec, "one template a line"))


def _list_at(spec: str, wanted: str) -> Path:
    path = packaged(spec) if spec.startswith("demo:") else expanded(spec)
    if not path.is_file():
        raise UsageError(f"there is no file {spec}", f"give a UTF-8 file with {wanted}")
    return path


def checked_templates(path: Path) -> list[str]:
    """Templates, one a line, each once and with a place for the label."""
    templates = list(dict.fromkeys(read_lines(path, "templates", "one template a line")))
    for template in templates:
        check_template(template, f"{path}: ")
    return templates


def check_template(template: str, where: str = "") -> None:
    """Raise UsageError, which begins with `where` it stands, for a template without a place for the label, or with a
    place for anything else.
    """
    for place in re.findall(r"\{[^{}]*\}", template):
        if place not in LABEL_PLACES:
            raise UsageError(
                f"{where}the template {template!r} has a place {place}, and only the label is put in",
                f"write {' or '.join(LABEL_PLACES)} where it goes",
            )
    if not any(place in template for place in LABEL_PLACES):
        raise UsageError(
            f"{where}the template {template!r} has no place for the label", 'for example: "a photo of a {c}."'
        )


def filled(template: str, label: str) -> str:
    """The prompt of a label. Not `str.format`, which would let a file of templates look into objects."""
    for place in LABEL_PLACES:
        template = template.replace(place, label)
    return template


def prompts(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every label in every template, label by label."""
    return [filled(template, label) for label in labels for template in templates]


def read_lines(path: Path, what: str, wanted: str) -> list[str]:
    """The lines of a small text file that are not empty, without the spaces around them."""
    lines = [line.strip() for line in _text(path, wanted).splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path} lists no {what}", f"give {wanted}")
    return lines


def _text(path: Path, wanted: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise CorruptInputError(f"{path} is no text file: {error}", f"give a UTF-8 file with {wanted}") from error
