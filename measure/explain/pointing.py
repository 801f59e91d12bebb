"""The pointing game: does a map's brightest cell lie on what the text names? (Zhang et al. 2018, "Top-Down Neural
Attention by Excitation Backprop", section 4.2)

A cell that touches a box is a hit: cells are coarse, and are the whole of what a map says. So the share of cells that
touch one is what a blind guess would hit, and is said beside the figure. A box that the crop cuts off counts as far as
it is seen; one that is not seen at all is left out and counted.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.data.decoding import decode_whole
from mmcompress.data.preprocess import center_crop, plain_view, resized_to
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Preprocessing
from mmcompress.measure.drift.significance import bootstrap_ci
from mmcompress.measure.explain.explain import Method, asking, says_nothing
from mmcompress.measure.retrieval import Bools
from mmcompress.progress import track

COLUMNS = ("image", "text", "left", "top", "right", "bottom")
MOST = 1 << 20
"""Pixels of a side."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the upright image, where 0 is the edge of the first one."""
Boxes = Mapping[tuple[Path, str], Sequence[Box]]
"""By image file and text: where what the text names is."""


@dataclass(frozen=True)
class Pointing:
    """How often one model's map points at what the text names."""

    name: str
    pairs: int
    """Of image and text, of which a box is seen."""
    unseen: int
    """Pairs whose boxes the crop leaves out."""
    hits: float | None
    """Share of the pairs; null where there are none."""
    interval: tuple[float, float] | None
    chance: float | None
    """Mean share of the cells that touch a box."""
    flat: int = 0
    """Pairs whose map is the same everywhere, misses: nothing in the image speaks for the text."""


def pointing(
    models: Mapping[str, Artifact], boxes: Boxes, method: Method, backend: Backend | None = None
) -> list[Pointing]:
    """Play the game with every model, by what it is called."""
    return [_played(name, model, boxes, method, backend) for name, model in models.items()]


def _played(name: str, model: Artifact, boxes: Boxes, method: Method, backend: Backend | None) -> Pointing:
    rule, hits, shares, flat = model.image_processing, [], [], 0
    with asking(model, method, backend) as asked:
        for (file, text), places in track(boxes.items(), name, total=len(boxes)):
            image, seen = _looked_at(file, places, rule)
            if not seen.any():
                continue
            found = asked(image, text)[1]
            touched = touched_cells(seen, len(found))
            flat += (nothing := says_nothing(found))
            hits.append(not nothing and bool(touched[found == found.max()].all()))
            shares.append(float(touched.mean()))
    known = len(hits) > 0
    return Pointing(
        name,
        pairs=len(hits),
        unseen=len(boxes) - len(hits),
        hits=float(np.mean(hits)) if known else None,
        interval=bootstrap_ci(np.array(hits)) if known else None,
        chance=float(np.mean(shares)) if known else None,
        flat=flat,
    )


def _looked_at(file: Path, boxes: Sequence[Box], rule: Preprocessing) -> tuple[NDArray[np.uint8], Bools]:
    """(S, S, 3) and (S, S): an image as a model sees it, and which pixels are in a box."""
    try:
        image = Image.fromarray(decode_whole(file.read_bytes()))
        return plain_view(image, rule), seen_boxes(image.size, boxes, rule)
    except CorruptInputError as error:
        raise CorruptInputError(f"{file}: {error.what}", error.hint) from error


def seen_boxes(size: tuple[int, int], boxes: Sequence[Box], rule: Preprocessing) -> Bools:
    """(width, height) of an image -> (S, S): the pixels that a box touches, resized and cropped as the image is.

    Raises CorruptInputError for a box that lies beside the image.
    """
    width, height = resized_to(*size, rule)
    mask = np.zeros((height, width, 1), np.uint8)
    for left, top, right, bottom in boxes:
        if left >= size[0] or top >= size[1]:
            raise CorruptInputError(
                f"the box {(left, top, right, bottom)} lies beside the image of {size[0]} x {size[1]} pixels",
                "give pixels of the upright image",
            )
        mask[_touched(top, bottom, height / size[1]), _touched(left, right, width / size[0])] = 1
    inside: Bools = center_crop(mask, rule.size, rule.centre)[..., 0] > 0
    return inside


def _touched(start: float, stop: float, scale: float) -> slice:
    """The pixels that a part of a side touches once it is resized; rounded, as 1/3 of 3 is 1."""
    return slice(math.floor(round(start * scale, 6)), math.ceil(round(stop * scale, 6)))


def touched_cells(inside: Bools, cells: int) -> Bools:
    """(S, S) -> (cells, cells): whether any pixel of a cell is inside."""
    edges = np.linspace(0, len(inside), cells + 1).round().astype(int)[:-1]
    touched: Bools = np.logical_or.reduceat(np.logical_or.reduceat(inside, edges, axis=0), edges, axis=1)
    return touched


def read_boxes(table: Path) -> Boxes:
    """A table with tabs between the columns `image`, `text`, `left`, `top`, `right` and `bottom`, named in its first
    line; image files are relative to it, and each line is one box.

    Raises UsageError for what is missing, CorruptInputError naming the first line that is no box.
    """
    if not table.is_file():
        raise UsageError(f"there is no table {table}", f"give a file with the columns {', '.join(COLUMNS)}")
    boxes: dict[tuple[Path, str], list[Box]] = {}
    with table.open(encoding="utf-8", errors="replace", newline="") as stream:
        lines = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        if missing := [name for name in COLUMNS if name not in (lines.fieldnames or ())]:
            raise CorruptInputError(
                f"{table} has no column {missing[0]!r}", f"its first line names {', '.join(COLUMNS)}, with tabs between"
            )
        for line in lines:
            where = f"{table}, line {lines.line_num}"
            file, text = table.parent / (line["image"] or ""), (line["text"] or "").strip()
            if not text or not file.is_file():
                what = f"there is no image {file}" if text else "there is no text"
                raise CorruptInputError(f"{where}: {what}", "images are relative to the table")
            boxes.setdefault((file, text), []).append(_box([line[name] for name in COLUMNS[2:]], where))
    if not boxes:
        raise UsageError(f"{table} has no box", "a line a box, below the names of the columns")
    return boxes


def _box(said: Sequence[str | None], where: str) -> Box:
    try:
        left, top, right, bottom = (float(number or "") for number in said)
        if not all(map(math.isfinite, (left, top, right, bottom))):
            raise ValueError(said)
    except ValueError as error:
        raise CorruptInputError(f"{where}: {said} are no four numbers", "give pixels of the upright image") from error
    if not (0 <= left < right <= MOST and 0 <= top < bottom <= MOST):
        raise CorruptInputError(f"{where}: {said} is no box", "left is below right, and top below bottom, from 0 on")
    return left, top, right, bottom
