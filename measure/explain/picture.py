"""Maps as pictures: an image as the model sees it, lit where its answer rests on it, in a row of several models.

The text and the letters of names that Pillow's own font lacks are in the file's metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from mmcompress.drafts import written_whole
from mmcompress.errors import UsageError
from mmcompress.measure.explain.explain import Explanation
from mmcompress.measure.explain.heat import lit
from mmcompress.places import check_apart, check_name, writing

SIDE = 224
"""Of a picture in a row, at least, in pixels."""
_MARGIN, _LINE = 8, 20
_MADE_BY = "mmcompress explain"


def row(explanations: Sequence[Explanation], text: str) -> Image.Image:
    """The image, then each model's map of it, with names and cosines above and the text below."""
    side = max(SIDE, *(len(one.pixels) for one in explanations))
    plain = Image.fromarray(explanations[0].pixels).resize((side, side), Image.Resampling.BICUBIC)
    pictures = [("image", plain)]
    pictures += [(f"{one.name}  {one.cosine:.3f}", lit(one.pixels, one.map, side)) for one in explanations]
    width = _MARGIN + len(pictures) * (side + _MARGIN)
    sheet = Image.new("RGB", (width, side + 2 * (_LINE + _MARGIN)), "white")
    for place, (title, picture) in enumerate(pictures):
        left = _MARGIN + place * (side + _MARGIN)
        _write(sheet, title, left, _MARGIN // 2, side)
        sheet.paste(picture, (left, _LINE + _MARGIN))
    asked = text if text.isascii() else "(the text is in the file's metadata: this font lacks its letters)"
    _write(sheet, asked, _MARGIN, side + _LINE + 2 * _MARGIN - 4, width - 2 * _MARGIN)
    return sheet


def _write(sheet: Image.Image, text: str, left: int, top: int, width: int) -> None:
    """One line, cut where it is too long."""
    font, text = ImageFont.load_default(13), text.encode("ascii", "replace").decode()
    while ImageDraw.Draw(sheet).textlength(text, font) > width:
        text = f"{text.removesuffix('...')[:-1]}..."
    ImageDraw.Draw(sheet).text((left, top), text, "black", font)


def check_picture(out: Path, image: Path) -> None:
    """Raise UsageError unless a picture may be written there; it replaces an earlier one of ours, and nothing else."""
    check_name(out)
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out} is no name of a PNG file", "give --out NAME.png")
    if not out.parent.is_dir():
        raise UsageError(f"{out} lies in {out.parent}, which is no folder", "make it, or give another --out")
    check_apart(out, [image])
    if out.is_symlink() or (out.exists() and _maker(out) != _MADE_BY):
        raise UsageError(f"{out} exists and is no picture of explain, so it is not overwritten", "give another --out")


def save(picture: Image.Image, text: str, out: Path) -> None:
    """As PNG, whole or not at all, with what was asked in its metadata."""
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", _MADE_BY)
    about.add_itxt("Description", text)
    with writing(out), written_whole(out) as stream:
        picture.save(stream, "PNG", pnginfo=about)


def _maker(path: Path) -> object:
    try:
        with Image.open(path) as image:
            return image.info.get("Software")
    except (OSError, SyntaxError, ValueError):
        return None
