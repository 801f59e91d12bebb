"""How much of a data set could not be read, which items, and when that is too much.

A damaged image in a million must not stop a night of training, and a damaged half of them must. So bad items are
counted, named in a log and skipped, up to a share that the user sets.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.text import Text

from mmcompress.data.parsing import NO_CAPTION, NO_IMAGE, TOO_MANY_DOTS
from mmcompress.datakeys import option_for
from mmcompress.errors import CorruptInputError
from mmcompress.progress import console

EARLY = 1000
"""Items after which too many bad ones stop the work without waiting for the end of the data."""
NAMED = 3
"""Bad items that are told by name."""
_REASONS = 50
_OTHERS = "others"
_LAYOUT = (
    "a sample of a shard is KEY.jpg (jpeg, png, webp) and KEY.txt, or KEY.json with caption; "
    "`mmcompress data pack DIR|TABLE --out SHARDS` makes such shards of a folder, or of a .tsv or .csv with the "
    "columns image and caption"
)
_WAYS = {
    TOO_MANY_DOTS: f"take names up to their last dot: {option_for('*.jpg')}",
    NO_IMAGE: f"say which of them is the image: {option_for('NAME')}",
    NO_CAPTION: f"say which of them is the caption: {option_for(texts='NAME')}",
}
"""What mends files of other names than samples have, by what the reasons say."""


@dataclass
class Tally:
    """Counts good and bad items, names the bad ones in a log, and stops when they are too many."""

    spec: str
    max_bad_fraction: float
    log: Path | None = None
    announce: bool = True
    option: str = "data.max_bad_fraction"
    """What allows more."""
    keeps: bool = False
    """Whether what is made of the data is kept, so that damage which may pass is an error."""
    good: int = 0
    bad: int = 0
    first: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    """How many items each reason was given for; some reasons have figures in them, so what comes late is `others`."""

    def add_bad(self, name: str, reason: str, may_pass: bool = False) -> None:
        """CorruptInputError where they are too many, or where it may pass and what is made would lack it for good."""
        line = printable(f"{name}: {reason}")
        if may_pass and self.keeps:
            raise CorruptInputError(
                line, "what is made is kept, and would lack it for good: try again when it can be read, or leave it out"
            )
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a" if self.bad else "w", encoding="utf-8") as stream:
                stream.write(line + "\n")
        self.bad += 1
        self.reasons[reason if reason in self.reasons or len(self.reasons) < _REASONS else _OTHERS] += 1
        if self.bad <= NAMED:
            self.first.append(line)
        if self.good + self.bad >= EARLY:
            self.check_so_far()

    def check_so_far(self) -> None:
        """Too many bad ones among the first items are an error."""
        self._check_fraction("the first ")

    def finish(self) -> None:
        """Call at the end of the data: too many bad items, or no good one, is an error; few are a warning."""
        if self.good == 0:
            reason = f"{self._bad_of('')}: {self._named()}" if self.bad else "nothing in it is one"
            raise CorruptInputError(f"{self.spec} has no readable sample; {reason}", self._hint())
        self._check_fraction("")
        if self.bad and self.announce:
            where = f" (all of them in {self.log})" if self.log is not None else ""
            warning = f"warning: {self.spec}: {self._bad_of('')} and were skipped: {self._named()}{where}"
            console.print(Text(warning, "yellow"), soft_wrap=True)

    def _check_fraction(self, of: str) -> None:
        if self.bad > self.max_bad_fraction * (self.good + self.bad):
            limit = f"more than {self.max_bad_fraction:.2%}".replace(".00%", "%")
            raise CorruptInputError(f"{self.spec}: {self._bad_of(of)}, {limit}: {self._named()}", self._hint())

    def _bad_of(self, of: str) -> str:
        return f"{self.bad} of {of}{self.good + self.bad} items cannot be read"

    def _named(self) -> str:
        return "; ".join(self.first) + ("; …" if self.bad > len(self.first) else "")

    def _hint(self) -> str:
        if self.good == self.bad == 0:
            return _LAYOUT
        if self.good == 0 and (way := self._way()) is not None:
            return f"{_LAYOUT}; or {way}"
        logged = f"{self.log} names all of them; " if self.log is not None and self.bad else ""
        return f"{logged}mend or remove them, or allow more with {self.option}"

    def _way(self) -> str | None:
        """What mends names, where nothing is wrong but names."""
        for words, way in _WAYS.items():
            if self.reasons and all(words in reason for reason in self.reasons if reason != _OTHERS):
                return way
        return None


def printable(text: str) -> str:
    """A name from a stranger's tar must not steer a terminal; bytes that are no text stay readable, as `\\udce9`."""
    readable = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else "�" for c in readable)
