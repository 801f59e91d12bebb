"""`mmcompress data stats`: what a data set is like, read once: sizes, captions, scripts, damage.

Everything is counted in tables whose size does not depend on the number of pairs, so percentiles are exact. Scripts are
told by the names of Unicode's letters, and languages where `languages.py` can.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from mmcompress.data.imagefile import image_size
from mmcompress.data.languages import language_teller
from mmcompress.data.reading import Listed, listed, named
from mmcompress.data.sample import Sample
from mmcompress.data.spec import expand, named_keys, part_of
from mmcompress.data.tally import Tally
from mmcompress.errors import MissingRequirementError
from mmcompress.progress import track

PERCENTILES = (0, 5, 50, 95, 100)
_SCRIPTS = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "FULLWIDTH": "Latin"}
"""Where the first word of a letter's name is not the name of its script."""
_NO_LETTERS = "no letters"


@dataclass
class DataStats:
    """Counts over a data set; figures of images are in pixels and bytes, of captions in characters and words."""

    samples: int = 0
    captions: int = 0
    labelled: int = 0
    """Samples that have a class."""
    damaged: int = 0
    damage: dict[str, int] = field(default_factory=dict)
    """Items by what is wrong with them."""
    formats: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    """Captions by the script of most of their letters."""
    languages: Counter[str] | None = None
    """Captions by language, of which the shortest tell none; None where nothing is installed that tells them."""
    _values: dict[str, Counter[float]] = field(default_factory=dict)

    def count(self, figure: str, value: float) -> None:
        self._values.setdefault(figure, Counter())[value] += 1

    @property
    def percentiles(self) -> dict[str, dict[str, float]]:
        """By figure, by percentile."""
        return {name: {f"p{at}": percentile(counts, at) for at in PERCENTILES} for name, counts in self._values.items()}


def stats(spec: str) -> DataStats:
    """Read a data set once. Raises CorruptInputError where nothing in it is good."""
    found, tally = DataStats(), Tally(spec, max_bad_fraction=1.0, announce=False)
    language = None
    with suppress(MissingRequirementError):
        language, found.languages = language_teller(), Counter()
    share = part_of(spec)[0]
    for item in track(listed(named(expand(spec)), named_keys(spec), tally), "reading", None):
        if share is None or share.has(item.key):
            _count(item, found, tally, language)
    tally.finish()
    found.damaged, found.damage = tally.bad, dict(tally.reasons.most_common())
    return found


def _count(item: Listed, found: DataStats, tally: Tally, language: Callable[[str], str] | None) -> None:
    try:
        image = item.image if isinstance(item, Sample) else item.stored()
        width, height = image_size(image)
    except (OSError, ValueError) as error:
        tally.good -= 1
        tally.add_bad(item.key, f"the image cannot be read: {error}")
        return
    found.samples += 1
    found.captions += len(item.captions)
    found.labelled += item.label is not None
    found.formats[_format(image)] += 1
    found.count("width", width)
    found.count("height", height)
    found.count("aspect", round(width / height, 2))
    found.count("kilobytes", round(len(image) / 1000))
    found.count("captions_an_image", len(item.captions))
    for caption in item.captions:
        found.scripts[script_of(caption)] += 1
        if language is not None and found.languages is not None:
            found.languages[language(caption)] += 1
        found.count("caption_characters", len(caption))
        found.count("caption_words", len(caption.split()))


def _format(image: bytes) -> str:
    return "JPEG" if image[:2] == b"\xff\xd8" else "PNG" if image[:1] == b"\x89" else "WebP"


def percentile(counts: Counter[float], at: int) -> float:
    """The smallest value that at least `at` percent of all values do not exceed."""
    need, seen = at / 100 * sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= need:
            return value
    raise ValueError("nothing was counted")


def script_of(text: str) -> str:
    """`a dog` -> Latin, `树枝上的鸟` -> Han: what most letters belong to, at a tie what comes first."""
    scripts = Counter(script for script in map(_script, text) if script)
    return scripts.most_common(1)[0][0] if scripts else _NO_LETTERS


@functools.lru_cache(maxsize=65_536)
def _script(character: str) -> str:
    """Empty for what is no letter."""
    if not character.isalpha():
        return ""
    first = unicodedata.name(character, "UNKNOWN").split("-")[0].split()[0]
    return _SCRIPTS.get(first, first.capitalize())
