"""The students that a latency is shared out to: presets of every family at several resolutions, widths and depths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from mmcompress.architecture import AnyImageConfig
from mmcompress.compress.train.student import preset_image
from mmcompress.config import StudentConfig

SMALL = 96
"""Images up to this side are for presets of 64 pixels."""
PRESETS_OF = {
    True: ("mnv4-s-64", "vit-t8-64", "vit-m8-64"),
    False: ("mnv4-s", "mnv4-m", "mnv4-hm", "mnv4-l", "vit-t16", "vit-s32", "vit-s16", "vit-b32", "vit-b16"),
}
"""By whether images are small."""
RESOLUTIONS = (1.0, 6 / 7, 5 / 7, 4 / 7)
WIDTHS = (0.5, 0.75, 1.0, 1.25)
DEPTHS = (0.5, 0.75, 1.0)
STRIDE = 32
"""Sides come in multiples of this, of which 16- and 32-pixel patches have whole numbers; of small images in 16."""


@dataclass(frozen=True)
class Candidate:
    """A preset at a resolution, a width and a depth."""

    preset: str
    image_size: int
    width: float = 1.0
    depth: float = 1.0

    @property
    def name(self) -> str:
        """`mnv4-m at 192 px, width 0.75`"""
        shares = {"width": self.width, "depth": self.depth}
        return f"{self.preset} at {self.image_size} px" + "".join(f", {k} {v:g}" for k, v in shares.items() if v != 1)

    @property
    def student(self) -> StudentConfig:
        return StudentConfig(source=self.preset, image_size=self.image_size, width=self.width, depth=self.depth)


def tower_of(candidate: Candidate) -> AnyImageConfig:
    return preset_image(candidate.student)


def candidates(image_size: int, sides: tuple[int, ...] | None = None) -> Iterator[Candidate]:
    """Every student for images up to this side, or of these sides alone."""
    every = sides or sides_of(image_size)
    for preset, side, width, depth in product(PRESETS_OF[image_size <= SMALL], every, WIDTHS, DEPTHS):
        if not preset.startswith("vit-") or side % patch_of(preset) == 0:
            yield Candidate(preset, side, width, depth)


def sides_of(image_size: int) -> tuple[int, ...]:
    """The sides that students have where the teacher has this one."""
    stride = STRIDE if image_size > SMALL else STRIDE // 2
    sides = {max(stride, round(share * image_size / stride) * stride) for share in RESOLUTIONS}
    return tuple(sorted({side for side in sides if side <= image_size} or {stride}, reverse=True))


def probes_of(image_size: int) -> list[Candidate]:
    """The students whose whole towers are timed: each preset at both ends of the sides, and some widths and depths."""
    sides = sides_of(image_size)
    found = []
    for preset in PRESETS_OF[image_size <= SMALL]:
        own = [side for side in sides if not preset.startswith("vit-") or side % patch_of(preset) == 0] or [*sides[:1]]
        found += [Candidate(preset, own[0]), Candidate(preset, own[-1], 0.75), Candidate(preset, own[-1], 0.5, 0.5)]
        if image_size <= SMALL:
            found += [Candidate(preset, own[0], width) for width in (0.5, 1.25)]
            found += [Candidate(preset, own[0], 1.0, 0.5)]
    return [*dict.fromkeys(found)]


def patch_of(preset: str) -> int:
    """The side of a transformer preset's patches."""
    tower = preset_image(StudentConfig(source=preset))
    return tower.output_stride
