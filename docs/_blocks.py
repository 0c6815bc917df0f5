"""Parts of pages, between marks, that are written from what they tell of; the tests compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

Blocks = Mapping[str, Mapping[str, str]]
"""Text by name, by page."""

Said = Mapping[str, Sequence[str]]
"""What the prose of a page has to say, by page: words in which a figure is, made of its record."""

COUNTS = dict(
    enumerate(
        (
            *("no", "one", "two", "three", "four", "five", "six"),
            *("seven", "eight", "nine", "ten", "eleven", "twelve"),
        )
    )
)
PARTS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 10: "a tenth"}


def count(number: float) -> str:
    """The nearest whole number, in words; a KeyError where there is none for it."""
    return COUNTS[round(number)]


def part(share: float) -> str:
    """The nearest of the parts that have a word."""
    return PARTS[min(PARTS, key=lambda n: abs(1 / n - share))]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def written(text: str, parts: Mapping[str, str]) -> str:
    """A page with its parts as they are now."""
    for name, block in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        if begin not in text or end not in text:
            raise ValueError(f"expected {begin.strip()} and {end.strip()} in the page")
        before, _, rest = text.partition(begin)
        text = before + begin + block + end + rest.partition(end)[2]
    return text


def write(blocks: Blocks) -> None:
    """Put blocks into their pages."""
    for page, parts in blocks.items():
        path = ROOT / page
        path.write_text(written(path.read_text(), parts))
