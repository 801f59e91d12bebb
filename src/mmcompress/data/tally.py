"""How much of a data set could not be read, which items, and when that is too much.

A damaged image in a million must not stop a night of training, and a damaged half of them must. So bad items are
counted, named in a log and skipped, up to a share that the user sets.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.text import Text

from mmcompress.errors import CorruptInputError
from mmcompress.progress import console

EARLY = 1000
"""Items after which too many bad ones stop the work without waiting for the end of the data."""
NAMED = 3
"""Bad items that are told by name."""
_REASONS = 50
_LAYOUT = (
    "a sample of a shard is KEY.jpg (jpeg, png, webp) and KEY.txt, or KEY.json with caption; "
    "`mmcompress data pack DIR|TABLE --out SHARDS` makes such shards of a folder, or of a .tsv or .csv with the "
    "columns image and caption"
)
_NONE = ("no image (", "no caption (")
"""How reasons begin (`parsing.py`) where files have other names than samples have."""


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
        self.reasons[reason if reason in self.reasons or len(self.reasons) < _REASONS else "others"] += 1
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
            reason = f"{self._bad_of('')}: {self._named()}" if self.bad else "it is empty"
            named_otherwise = bool(self.reasons) and all(reason.startswith(_NONE) for reason in self.reasons)
            hint = _LAYOUT if named_otherwise else self._hint()
            raise CorruptInputError(f"{self.spec} has no readable sample; {reason}", hint)
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
        logged = f"{self.log} names all of them; " if self.log is not None and self.bad else ""
        return f"{logged}mend or remove them, or allow more with {self.option}"


def printable(text: str) -> str:
    """A name from a stranger's tar must not steer a terminal; bytes that are no text stay readable, as `\\udce9`."""
    readable = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else "�" for c in readable)
