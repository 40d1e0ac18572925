"""Colours for TL, by Pygments: the words are those of the grammar and of the table of functions.

Not here: parsing (tl/parser.py); a text that does not parse is coloured too.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import ClassVar

from pygments.lexer import RegexLexer, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, Text, Whitespace

from qimeng_attention.tl.functions import CONSTANTS, FUNCTIONS
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.parser import KEYWORDS

_GRAMMAR = resources.files("qimeng_attention.tl").joinpath("grammar.lark").read_text("utf-8")
_WORDS = sorted(set(re.findall(r'"([A-Za-z]+)"', _GRAMMAR)) - set(KEYWORDS))


class TlLexer(RegexLexer):  # type: ignore[misc]
    """Statements, other words, functions, numbers, comments."""

    name = "TL"
    aliases: ClassVar[list[str]] = ["tl"]
    filenames: ClassVar[list[str]] = ["*.tl"]
    tokens: ClassVar[dict[str, list[tuple[object, object]]]] = {
        "root": [
            (r"#[^\n]*", Comment.Single),
            (r"\s+", Whitespace),
            (words(tuple(KEYWORDS), suffix=r"\b"), Keyword),
            (words(tuple(_WORDS), suffix=r"\b"), Keyword.Pseudo),
            (words(tuple(sorted(FUNCTIONS)), suffix=r"\b"), Name.Builtin),
            (words(tuple(sorted(CONSTANTS)), suffix=r"\b"), Name.Constant),
            (words(tuple(sorted(BYTES)), suffix=r"\b"), Keyword.Type),
            (r"\d+(\.\d*)?([eE][+-]?\d+)?", Number),
            (r"[A-Za-z_]\w*", Name),
            (r"[-+*/%<>=!]+", Operator),
            (r"[()\[\]{},:;.]", Punctuation),
            (r".", Text),
        ]
    }
