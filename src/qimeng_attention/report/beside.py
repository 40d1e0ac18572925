"""A TL program beside the CuTe C++ it became: rows that pair lines by the `// tl:LINE` comments.

The C++ keeps its order; TL lines that became no code of their own stand alone where they come. The comments
themselves are left out, they repeat what stands beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MARK = re.compile(r"\s*// tl:(\d{1,9})\b")


@dataclass(frozen=True, slots=True)
class Row:
    """TL lines and the C++ lines that they became, by number, counted from 1."""

    tl: tuple[int, ...]
    cpp: tuple[int, ...]
    again: bool = False  # the TL line has stood in an earlier row


def lines_of(text: str) -> list[str]:
    """Give the lines as the parser of TL counts them: only a line feed ends one."""
    return text.removesuffix("\n").split("\n") if text else []


def pair(tl: str, cpp: str) -> list[Row]:
    """Pair the lines of a program with those of its translation; every line of both is in a row, the marks apart."""
    count, rows, shown = len(lines_of(tl)), [], 0
    for number, lines in _groups(cpp):
        if number is None or number > count:  # what stands before the first mark, or a mark of another program
            rows.append(Row((), lines))
        elif number <= shown:
            rows.append(Row((number,), lines, again=True))
        else:
            before = tuple(range(shown + 1, number))
            if before and len(rows) == 1 and not rows[0].tl:  # the declarations stand beside the kernel's head
                rows[0] = Row(before, rows[0].cpp)
            else:
                rows += [Row((n,), ()) for n in before]
            rows.append(Row((number,), lines))
            shown = number
    return rows + [Row((n,), ()) for n in range(shown + 1, count + 1)]


def _groups(cpp: str) -> Iterator[tuple[int | None, tuple[int, ...]]]:
    """Give the C++ lines behind each mark with the TL line it names, those before the first with None."""
    number: int | None = None
    lines: list[int] = []
    for place, text in enumerate(lines_of(cpp), 1):
        if mark := MARK.match(text):
            if lines or number is not None:
                yield number, tuple(lines)
            number, lines = int(mark[1]), []
        else:
            lines.append(place)
    if lines or number is not None:
        yield number, tuple(lines)
