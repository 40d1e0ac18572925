"""Text of others made fit to be looked at: nothing in it moves a cursor, sets a title or turns a line around.

Not here: where it is shown (terminal.py, report/).
"""

from __future__ import annotations

import unicodedata
from typing import Any

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def plain(text: str) -> str:
    """Give a text with a replacement sign for everything that is neither shown nor a line's end nor a tab."""
    # SAFETY: escape sequences would reach the terminal, and signs of direction would show another program than it is.
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def cleaned(value: Any) -> Any:
    """Give a JSON value whose texts are plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    return {plain(str(n)): cleaned(v) for n, v in value.items()} if isinstance(value, dict) else value
