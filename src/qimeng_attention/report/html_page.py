"""A bundle, or a run, as one HTML file that loads nothing: style and picture are inside, and no script is needed.

Lines stand beside each other in rows, so that pointing at one shows its partner; `#tl-12` addresses TL line 12.

Not here: what is shown (page.py, run_page.py).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers.c_cpp import CppLexer

from qimeng_attention import __version__
from qimeng_attention.report.page import Page
from qimeng_attention.report.run_page import RunPage
from qimeng_attention.report.run_terminal import known
from qimeng_attention.report.tl_lexer import TlLexer

LIGHT, DARK = "friendly", "github-dark"  # styles of Pygments
_PREFIX = "hl-"  # of its classes, so that they are not taken for the page's


def to_html(page: Page) -> str:
    """Render a page; every text of the bundle is escaped."""
    cpp = _coloured("\n".join(page.cpp), CppLexer())
    tl = _coloured("\n".join(page.tl), TlLexer())
    levels = [(name, Markup("\n").join(_coloured(text, TlLexer()))) for name, text in page.levels if text.strip()]
    text: str = _template("page").render(
        page=page, tl=tl, cpp=cpp, levels=levels, colours=Markup(_colours()), version=__version__
    )
    return text


def run_to_html(page: RunPage) -> str:
    """Render a run; every text of it is escaped, prompts and answers are folded."""
    lexers = [TlLexer() if a.language == "tl" else CppLexer() for a in page.attempts]
    programs = [_coloured("\n".join(a.program), lexer) for a, lexer in zip(page.attempts, lexers, strict=True)]
    text: str = _template("run").render(
        page=page, programs=programs, known=known, colours=Markup(_colours()), version=__version__
    )
    return text


@cache
def _template(name: str) -> Any:
    environment = Environment(
        loader=PackageLoader("qimeng_attention.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html.j2")


def _coloured(text: str, lexer: Lexer) -> list[Markup]:
    """Give the lines of a text as HTML; Pygments closes its tags at the end of each line and escapes the text."""
    lexer.stripnl = lexer.ensurenl = False
    return [
        Markup(line) for line in highlight(text, lexer, HtmlFormatter(nowrap=True, classprefix=_PREFIX)).split("\n")
    ]


@cache
def _colours() -> str:
    light, dark = (
        "\n".join(
            line
            for line in HtmlFormatter(style=style, classprefix=_PREFIX).get_style_defs(".code").split("\n")
            if line.startswith(".code .")
        )
        for style in (LIGHT, DARK)
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
