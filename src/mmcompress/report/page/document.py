"""page.json: what the scripts of the site read. The names are those that JavaScript uses (`site/worker.js`)."""

from __future__ import annotations

from typing import Literal

from mmcompress.document import Document, Part
from mmcompress.manifest import Preprocessing

Number = Literal["float32", "int32", "int64"]
"""What JavaScript has arrays of that the graphs take."""


class Input(Part):
    """An input of a graph."""

    name: str
    """`attention_mask` is made from the ids; the other one is the tower's."""
    dtype: Number
    """Of its numbers."""


class TowerFile(Part):
    """One graph."""

    file: str
    """ONNX, gzipped."""
    precision: str
    """fp32, fp16 or int8."""
    inputs: tuple[Input, ...]
    """The tower's own first."""
    output: str
    """The embedding's name."""


class Reading(Part):
    """How texts become ids; `TextProcessing`, with what the tokenizer sets around a text."""

    file: str
    """tokenizer.json, gzipped."""
    context: int
    """Ids of every text, filled up or cut off."""
    begin: tuple[int, ...]
    """Ids before every text."""
    end: tuple[int, ...]
    """Ids after every text, which are never cut off."""
    pad: int
    """What fills a text up, on its right."""
    eos: int
    """The end token."""
    lowercase: bool
    """Lower every character first."""
    prefix: str
    """Set before every text; the same characters inside become spaces."""
    mask: bool
    """Whether what fills a text up is masked."""


class Resizing(Preprocessing):
    """How images are prepared, as the Pillow that is installed does it."""

    columns_first: bool
    """Whether a tall image shrinks along its columns first, which rounds otherwise."""


class PageModel(Part):
    """One model of the page."""

    name: str
    """As the page calls it."""
    digest: str
    """Of its artifact."""
    scale: float
    """What cosines are multiplied with before the softmax."""
    preprocessing: Resizing
    """How images are prepared."""
    image: TowerFile
    """Its image tower."""
    text: TowerFile
    """Its text tower."""
    texts: Reading
    """How texts are read."""


class Picture(Part):
    """A picture that the page brings along."""

    file: str
    """As it was stored."""
    caption: str
    """What is said of it first."""


class PageDocument(Document):
    """What the site shows and runs."""

    title: str
    """Of the page."""
    runtime: str
    """ONNX Runtime's WebAssembly, gzipped."""
    models: tuple[PageModel, ...]
    """Side by side, in this order."""
    labels: tuple[str, ...]
    """Those that stand there at first."""
    queries: tuple[str, ...]
    """Searches to try."""
    pictures: tuple[Picture, ...]
    """To search in, and to classify."""
