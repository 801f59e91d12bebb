"""Preprocessing inside the image graph: it takes images as they were decoded and makes its own pixels of them.

Pillow resizes in two passes and rounds to whole levels after each (`ImagingResample`). A pass is linear in the pixels,
so it is a product with one matrix of filter weights; two products with a rounding between them are equal to Pillow to a
level of 255, in every runtime; only where a sum is half a level to the last digit do float and Pillow's whole numbers
round to two sides. The `Resize` operator is not: OpenVINO leaves out its antialiasing, ONNX Runtime rounds
otherwise in float and takes longer in bytes. The crop is folded in, since only the rows of a matrix that it keeps are
computed. Which pass is first matters to some levels, where both clip: columns are, but from Pillow 13 on rows where an
image loses more than twice as many of them. Graphs of one size do that too, those of any size are always columns first.

For one size of image the matrices are constants, and a pass that changes nothing is left out: a camera that delivers
the model's own size pays for normalizing alone. For images of any size the graph computes the matrices from height and
width, in whole numbers up to the filter itself, so that no size is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmcompress.data.preprocess import resized_size
from mmcompress.errors import UsageError
from mmcompress.export.graph import GraphWriter, Numerics
from mmcompress.manifest import Preprocessing

Floats = NDArray[np.floating[Any]]
Size = tuple[int, int]
"""Height and width of the images that a graph takes."""
ANY = "any"
FINEST = float(1 << 22)
"""Pillow's weights of bytes are whole multiples of 1 / 2^22, which decides where a sum lies between two levels."""
IMAGE = "image"
"""The input's name."""
Axis = Literal["height", "width"]
_AXES: Mapping[Axis, int] = {"height": 1, "width": 2}
COLUMNS_FIRST: tuple[Axis, Axis] = ("width", "height")
ROWS_FIRST: tuple[Axis, Axis] = ("height", "width")


def _bicubic(t: Floats) -> Floats:
    """Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing", eq. 15: a = -0.5."""
    t = np.abs(t)
    near, far = (1.5 * t - 2.5) * t * t + 1, -0.5 * (((t - 5) * t + 8) * t - 4)
    return np.where(t < 1, near, np.where(t < 2, far, 0))


FILTERS: Mapping[str, Callable[[Floats], Floats]] = {
    "bicubic": _bicubic,
    "bilinear": lambda t: np.maximum(1 - np.abs(t), 0),
    "box": lambda t: ((t > -0.5) & (t <= 0.5)) * 1.0,
    "hamming": lambda t: np.where(np.abs(t) < 1, np.sinc(t) * (0.54 + 0.46 * np.cos(np.pi * t)), 0),
    "lanczos": lambda t: np.where(np.abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0),
}
"""Weight of a source pixel by its distance in steps of the coarser grid, as Pillow has them."""


def size_of(image_input: str) -> Size | None:
    """`480x640` -> (480, 640), height first; None for any size."""
    if image_input == ANY:
        return None
    height, width = map(int, image_input.split("x"))
    return height, width


def check_image_input(rule: Preprocessing, size: Size | None) -> None:
    """Raise UsageError for a preprocessing that no graph repeats."""
    if rule.size > rule.resize:
        raise UsageError(
            f"the model's images are resized to {rule.resize} pixels and filled up with black to {rule.size}",
            "graphs do not fill up: leave image_input out",
        )
    if rule.interpolation not in FILTERS:
        raise UsageError(
            f"the model's images are resized by {rule.interpolation}, which adds no pixels up",
            "leave image_input out",
        )
    if size is None and rule.interpolation not in ("bicubic", "bilinear"):
        raise UsageError(
            f"the model's images are resized by {rule.interpolation}, and a graph computes bicubic and bilinear"
            " filters for any size",
            'give one size, whose filter is stored: image_input = "480x640"',
        )


def with_image_input(model: Any, rule: Preprocessing, size: Size | None) -> None:
    """Put the preprocessing before an image tower: `image` (N, H, W, 3) uint8 takes the place of its pixels."""
    check_image_input(rule, size)
    g = GraphWriter(model.opset_import[0].version, Numerics())
    x = g.cast("prepare.real", IMAGE, np.float32) if size is None else _cropped(g, rule, size)
    x = g.node("Transpose", "prepare.planes", x, perm=[0, 3, 1, 2])
    x = _resized(g, rule, x) if size is None else _resized_from(g, rule, size, x)
    x = g.node("Mul", "prepare.scaled", x, g.real("prepare.level", 1 / 255))
    mean, std = (np.array(values)[:, None, None] for values in (rule.mean, rule.std))
    x = g.node("Sub", "prepare.centred", x, g.real("prepare.mean", mean))
    g.node("Div", model.graph.input[0].name, x, g.real("prepare.std", std))
    g.put_before(model, (IMAGE, np.uint8, (*(size or ("height", "width")), 3)))


def rows_first(height: int, width: int, target_height: int, target_width: int) -> bool:
    """Whether Pillow, from 13 on, takes rows together before columns."""
    return height > target_height and height - target_height > 2 * (width - target_width)


def _passes(g: GraphWriter, name: str, x: str, matrices: Mapping[Axis, str], order: Sequence[Axis]) -> str:
    """(N, 3, H, W) -> (N, 3, S, S) by the matrices (W, S) and (S, H), one after the other."""
    for axis in order:
        if matrix := matrices[axis]:
            pair = (x, matrix) if axis == "width" else (matrix, x)
            x = _levels(g, f"{name}.{axis}.levels", g.node("MatMul", f"{name}.{axis}.resized", *pair))
    return x


def _levels(g: GraphWriter, name: str, x: str) -> str:
    """Whole levels of 0 to 255, halves up."""
    x = g.node("Floor", f"{name}.whole", g.node("Add", f"{name}.half", x, g.real(f"{name}.a_half", 0.5)))
    return g.node("Clip", name, x, g.real(f"{name}.black", 0.0), g.real(f"{name}.white", 255.0))


@dataclass(frozen=True)
class _Side:
    """One axis of images of one size."""

    source: int
    resized: int
    start: int
    """Of the crop, in the resized image."""


def _sides(rule: Preprocessing, size: Size) -> dict[Axis, _Side]:
    height, width = size
    across, down = (rule.resize, rule.resize) if rule.squash else resized_size(width, height, rule.resize)
    starts = {resized: (resized - rule.size) // 2 for resized in (down, across)}
    if rule.centre == "even":
        starts = {resized: start + start % 2 * ((resized - rule.size) % 2) for resized, start in starts.items()}
    return {"height": _Side(height, down, starts[down]), "width": _Side(width, across, starts[across])}


def _cropped(g: GraphWriter, rule: Preprocessing, size: Size) -> str:
    """The image as float, less what an axis that is not resized loses to the crop."""
    x = IMAGE
    for axis, side in _sides(rule, size).items():
        if side.source == side.resized != rule.size:
            bounds = {"start": side.start, "end": side.start + rule.size, "axis": _AXES[axis]}
            places = [g.constant(f"prepare.{axis}.crop.{key}", [value]) for key, value in bounds.items()]
            x = g.node("Slice", f"prepare.{axis}.crop", x, *places)
    return g.cast("prepare.real", x, np.float32)


def _resized_from(g: GraphWriter, rule: Preprocessing, size: Size, x: str) -> str:
    """Images of one size, (N, 3, H, W) -> (N, 3, S, S); an axis that is not resized has been cropped before."""
    sides = _sides(rule, size)

    def stored(axis: Axis) -> str:
        side = sides[axis]
        if side.source == side.resized:
            return ""
        matrix = resize_matrix(side.source, side.resized, side.start, rule.size, rule.interpolation)
        return g.real(f"prepare.{axis}.weights", matrix.T if axis == "width" else matrix)

    tall = rows_first(*size, sides["height"].resized, sides["width"].resized)
    return _passes(g, "prepare", x, {axis: stored(axis) for axis in sides}, ROWS_FIRST if tall else COLUMNS_FIRST)


def resize_matrix(source: int, resized: int, start: int, kept: int, interpolation: str) -> Floats:
    """(kept, source): the weights of one pass of Pillow's resampling, of the rows that a crop keeps."""
    out, given = 2 * (start + np.arange(kept)[:, None]) + 1, 2 * np.arange(source) + 1
    weights = FILTERS[interpolation]((given * resized - out * source) / (2 * max(source, resized)))
    steps: Floats = np.rint(weights / weights.sum(axis=1, keepdims=True) * FINEST)
    return steps / FINEST


def _resized(g: GraphWriter, rule: Preprocessing, x: str) -> str:
    """Images of any size, (N, 3, H, W) -> (N, 3, S, S), by matrices that are computed in the graph."""
    shape = g.node("Shape", "prepare.shape", IMAGE)
    sides = {
        axis: g.node("Gather", f"prepare.{axis}", shape, g.constant(f"prepare.{axis}.axis", np.asarray(index)), axis=0)
        for axis, index in _AXES.items()
    }
    g.constant("prepare.one", np.asarray(1))
    g.constant("prepare.two", np.asarray(2))
    resize = g.constant("prepare.resize", np.asarray(rule.resize))
    kept = g.constant("prepare.size", np.asarray(rule.size))
    finest = g.real("prepare.finest", FINEST)
    short = g.node("Min", "prepare.short", *sides.values())

    targets = dict.fromkeys(sides, resize)
    if not rule.squash:
        for axis, side in sides.items():
            scaled = g.node("Mul", f"prepare.{axis}.scaled", side, resize)
            targets[axis] = g.node("Div", f"prepare.{axis}.target", scaled, short)

    def computed(axis: Axis) -> str:
        name, source, resized = f"prepare.{axis}", sides[axis], targets[axis]
        start = _start(g, name, g.node("Sub", f"{name}.margin", resized, kept), rule)
        rows = g.node("Add", f"{name}.row", g.constant(f"{name}.rows", np.arange(rule.size)[:, None]), start)
        out = _centres(g, f"{name}.out", rows)
        given = g.node("Range", f"{name}.given", "prepare.one", _centres(g, f"{name}.end", source), "prepare.two")
        apart = g.node("Mul", f"{name}.given.fine", given, resized), g.node("Mul", f"{name}.out.fine", out, source)
        coarse = g.node("Mul", f"{name}.step", g.node("Max", f"{name}.coarser", source, resized), "prepare.two")
        real = [
            g.cast(f"{name}.{part}.real", value, np.float32)
            for part, value in (("apart", g.node("Sub", f"{name}.apart", *apart)), ("step", coarse))
        ]
        distance = g.node("Abs", f"{name}.distance", g.node("Div", f"{name}.signed", *real))
        weights = _filtered(g, f"{name}.filter", distance, rule.interpolation)
        total = g.node("ReduceSum", f"{name}.total", weights, g.constant(f"{name}.total.axes", [1]), keepdims=1)
        fine = g.node("Mul", f"{name}.share.fine", g.node("Div", f"{name}.share", weights, total), finest)
        return g.node("Div", f"{name}.weights", g.node("Round", f"{name}.steps", fine), finest)

    turned = g.node("Transpose", "prepare.width.turned", computed("width"), perm=[1, 0])
    matrices: dict[Axis, str] = {"width": turned, "height": computed("height")}
    return _passes(g, "prepare", x, matrices, COLUMNS_FIRST)


def _centres(g: GraphWriter, name: str, places: str) -> str:
    """2 i + 1: the centres of pixels in half steps."""
    return g.node("Add", name, g.node("Mul", f"{name}.doubled", places, "prepare.two"), "prepare.one")


def _start(g: GraphWriter, name: str, margin: str, rule: Preprocessing) -> str:
    """Where the crop begins, as `center_crop` places it."""
    start = g.node("Div", f"{name}.start.floor", margin, "prepare.two")
    if rule.centre == "floor":
        return start
    odd = [g.node("Mod", f"{name}.{part}.odd", value, "prepare.two") for part, value in (("m", margin), ("s", start))]
    return g.node("Add", f"{name}.start", start, g.node("Mul", f"{name}.start.even", *odd))


def _filtered(g: GraphWriter, name: str, t: str, interpolation: str) -> str:
    """The bicubic or bilinear filter in the graph, of distances (S, L)."""

    def step(op: str, part: str, x: str, value: float) -> str:
        return g.node(op, f"{name}.{part}", x, g.real(f"{name}.{part}.by", value))

    if interpolation == "bilinear":
        return step("Max", "weights", g.node("Neg", f"{name}.negative", step("Sub", "less", t, 1.0)), 0.0)
    t = step("Min", "near_or_far", t, 2.0)
    squared = g.node("Mul", f"{name}.squared", t, t)
    near = g.node("Mul", f"{name}.near.cubic", step("Sub", "near.c", step("Mul", "near.b", t, 1.5), 2.5), squared)
    near = step("Add", "near", near, 1.0)
    far = g.node("Mul", f"{name}.far.square", step("Sub", "far.a", t, 5.0), t)
    far = g.node("Mul", f"{name}.far.cubic", step("Add", "far.b", far, 8.0), t)
    far = step("Mul", "far", step("Sub", "far.c", far, 4.0), -0.5)
    return g.node("Where", f"{name}.weights", step("Less", "is_near", t, 1.0), near, far)
