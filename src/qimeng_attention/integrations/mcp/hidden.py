"""Characters that are not shown: they would move a cursor, or show another program than it is.

What comes in with one is refused, with its place; what goes out has them written out, as `\\x1b`.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from qimeng_attention.errors import SpecError

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # control, format, surrogates, private use, separators of lines
_ALLOWED = "\n\t"
MOST_CHARACTERS = 400_000  # of one text
_MOST_DEPTH = 32


def is_hidden(character: str) -> bool:
    """Tell whether a character shows nothing of itself."""
    return character not in _ALLOWED and unicodedata.category(character) in _HIDDEN


def _written(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def visible(text: str) -> str:
    """Give a text with every hidden character written out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_written(c) if is_hidden(c) else c for c in text.replace("\r\n", "\n"))


def cleaned(value: Any) -> Any:
    """Give a JSON value, keys too, with every hidden character written out."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(name)): cleaned(item) for name, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, list | tuple) else value


def refuse_hidden(value: Any, field: str, depth: int = 0) -> None:
    """Refuse an argument with a hidden character, one that is too long, or one that is nested without end.

    Raises:
        SpecError: with the argument's name, and the line and column of the character.
    """
    if depth > _MOST_DEPTH:
        raise SpecError(f"{field} is nested too deeply", hint="give a flat object", field=field)
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_hidden(str(name), f"a key of {field}", depth + 1)
            refuse_hidden(item, f"{field}.{name}", depth + 1)
    elif isinstance(value, list):
        for item in value:
            refuse_hidden(item, field, depth + 1)
    elif isinstance(value, str):
        _refuse_in_text(value, field)


def _refuse_in_text(text: str, field: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise SpecError(
            f"{field} has {len(text):,} characters",
            hint=f"a text has at most {MOST_CHARACTERS:,}",
            field=field,
        )
    text = text.replace("\r\n", "\n")  # a lone return moves the cursor, as escapes do
    place = next((n for n, c in enumerate(text) if is_hidden(c)), None)
    if place is None:
        return
    before = text[:place].split("\n")
    line, column = len(before), len(before[-1]) + 1
    raise SpecError(
        f"{field} holds a character that is not shown, {_written(text[place])}, in line {line}, column {column}",
        hint="leave it out; plain text, line ends and tabs are taken",
        field=field,
        line=line,
        column=column,
    )
