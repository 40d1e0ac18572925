"""Lines of C++ with indentation and the marks that lead back to TL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MOST_COLUMNS = 140  # a longer statement of TL is cut in its mark; the line number leads to it


class Writer:
    """Collects lines; two columns an indentation."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._depth = 0

    def line(self, text: str = "") -> None:
        """Add a line at the present indentation."""
        self.lines.append("  " * self._depth + text if text else "")

    def mark(self, number: int, text: str) -> None:
        """Say which line of TL the next lines come from."""
        shown = text if len(text) <= MOST_COLUMNS else text[: MOST_COLUMNS - 3] + "..."
        self.line(f"// tl:{number} {shown}")

    @contextmanager
    def block(self, head: str, tail: str = "}") -> Iterator[None]:
        """Open a block, and close it."""
        self.line(f"{head} {{".lstrip())
        self._depth += 1
        yield
        self._depth -= 1
        self.line(tail)

    def text(self) -> str:
        """Give all lines."""
        return "\n".join(self.lines) + "\n"
