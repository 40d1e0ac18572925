"""Pages for the terminal, drawn by Rich on any console.

Not here: what is shown (page.py, understood.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from pygments.lexer import Lexer
from pygments.lexers.c_cpp import CppLexer
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from qimeng_attention.plain_text import plain
from qimeng_attention.report.mask_picture import MaskPicture
from qimeng_attention.report.page import Page
from qimeng_attention.report.tl_lexer import TlLexer
from qimeng_attention.report.understood import Understood, Weights
from qimeng_attention.workflow.observed import Observed

_SIDE_BY_SIDE = 132  # columns that picture and example need beside each other
_FULL, _PART, _NONE = "██", "▒▒", "··"
_THEME = "ansi_dark"  # the terminal's own colours
_VERDICTS = {"accepted": "bold green", "rejected": "bold red"}


def show_understood(console: Console, understood: Understood) -> None:
    """Draw what was understood of a description."""
    console.print(understood_group(understood, console.width), soft_wrap=False)


def show_observed(console: Console, meaning: str, observed: Observed) -> None:
    """Draw what was understood of an operator that no description covers, and what its function shows when called."""
    console.print(Text(plain(meaning)), soft_wrap=False)
    console.print()
    if observed.weights is None or observed.seen is None:
        console.print(Text(plain(f"no picture: {observed.why}"), "dim"))
        return
    rows, columns = observed.seen.shape
    cells = tuple(tuple(float(cell) for cell in row) for row in observed.seen)
    picture = MaskPicture(cells, rows, columns, 1, 1, True, "by calling your function; head 0")
    words = "head 0, Q and K from N(0, 1), by calling your function with unit vectors for values"
    weights = Weights(observed.weights, observed.weights != 0, None, words)
    console.print(_drawings(picture, weights, console.width), soft_wrap=False)


def show_page(console: Console, page: Page, *, program: bool = True) -> None:
    """Draw everything about a bundle; `program` also draws TL beside C++."""
    console.print(Text.assemble((page.kernel, "bold"), f" for {page.target}"))
    if page.understood is not None:
        part(console, "what was asked for", understood_group(page.understood, console.width))
    part(console, "why it is as it is", _reasons(page), empty=not page.reasons)
    part(console, "launch", facts_table(page.launch), empty=not page.launch)
    part(console, "resources", facts_table(page.resources), empty=not page.resources)
    verdict = Text(page.verdict if page.judged else "none: the kernel has not been judged")
    verdict.stylize(_VERDICTS.get(page.verdict, "bold yellow"))
    part(console, "verdict", Group(verdict, facts_table(page.judged)))
    unmeasured = [("not measured", "`qimeng bench` times it on a GPU")]
    unmeasured += [("prediction", page.predicted)] if page.predicted else []
    part(console, "speed", facts_table(page.speed or unmeasured))
    part(console, "made by", facts_table(page.made_by), empty=not page.made_by)
    if program:
        title = "scheduled TL, and the CuTe C++ it became" if any(page.tl) else "the kernel, written in CUDA"
        part(console, title, _beside(page, console.width))


def part(console: Console, title: str, content: RenderableType, *, empty: bool = False) -> None:
    """Draw a part of a page below its title, or nothing where it is empty."""
    if not empty:
        console.print()
        console.print(Rule(Text(title, "bold"), align="left", characters="─"))
        console.print(content, soft_wrap=False)


def facts_table(facts: Iterable[tuple[str, str]]) -> Table:
    """Draw names and values, a line each."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(value))
    return table


def understood_group(understood: Understood, width: int) -> Group:
    """Draw formula, assumptions, mask and example, side by side where there is room."""
    formula = Table.grid(padding=(0, 1))
    formula.add_column(justify="right", style="bold", no_wrap=True)
    formula.add_column(no_wrap=True)
    formula.add_column(overflow="fold")
    for what, how in understood.formula:
        formula.add_row(Text(what), "=" if what != "seen" else ":", Text(how))
    drawings = _drawings(understood.picture, understood.weights, width)
    return Group(formula, Text(""), facts_table(understood.assumptions), Text(""), drawings)


def _drawings(seen: MaskPicture, example: Weights, width: int) -> RenderableType:
    picture, weights = _picture(seen), _weights(example)
    if width < _SIDE_BY_SIDE:
        return Group(picture, Text(""), weights)
    drawings = Table.grid(padding=(0, 4))
    drawings.add_row(picture, weights)
    return drawings


def _picture(picture: MaskPicture) -> Group:
    width = len(str(picture.seqlen_q))
    lines = [Text(f"{'':{width}} kv_idx 0 to {picture.seqlen_k - 1}", "dim")]
    for place, row in enumerate(picture.cells):
        cells = "".join(_FULL if share == 1 else _NONE if share == 0 else _PART for share in row)
        lines.append(Text.assemble((f"{place * picture.queries_a_cell:{width}} ", "dim"), cells))
    legend = f"{_FULL} seen" + (f", {_PART} some" if any(0 < x < 1 for row in picture.cells for x in row) else "")
    return Group(Text("mask", "bold"), *lines, Text(f"{legend}, {_NONE} not", "dim"), Text(picture.words(), "dim"))


def _weights(weights: Weights) -> Group:
    table = Table.grid(padding=(0, 2))
    rows, columns = weights.values.shape
    table.add_column(justify="right", style="dim")
    for _ in range(columns + 1):
        table.add_column(justify="right", no_wrap=True)
    heads = [*(f"k {n}" for n in range(columns)), *([] if weights.lse is None else ["LSE"])]
    table.add_row("q_idx", *(Text(head, "dim") for head in heads))
    for row in range(rows):
        cells = [f"{weights.values[row, n]:.3f}" if weights.visible[row, n] else "·" for n in range(columns)]
        table.add_row(str(row), *cells, *([] if weights.lse is None else [f"{weights.lse[row]:.3f}"]))
    return Group(Text("weights P, float64", "bold"), table, Text(weights.inputs, "dim"))


def _reasons(page: Page) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold", ratio=2)
    table.add_column(overflow="fold", ratio=3)
    for reason in page.reasons:
        why = Text(reason.why)
        if reason.predicted and "(predicted)" not in reason.why:
            why.append("  (a prediction)", "yellow")
        table.add_row(Text(reason.parameter), Text(reason.value), why)
    return table


def _beside(page: Page, width: int) -> Table:
    tl, cpp = coloured(page.tl, TlLexer()), coloured(page.cpp, CppLexer())
    number = len(str(max(len(tl), len(cpp), 1)))
    side = (width - 2 * number - 6) // 2
    table = Table.grid(padding=(0, 1))
    for justify, size in (("right", number), ("left", side), ("right", number), ("left", side)):
        table.add_column(justify=justify, width=size, overflow="fold")  # type: ignore[arg-type]
    for row in page.rows:
        for place in range(max(len(row.tl), len(row.cpp))):
            left = row.tl[place] if place < len(row.tl) else 0
            right = row.cpp[place] if place < len(row.cpp) else 0
            table.add_row(*_cell(tl, left, dim=row.again), *_cell(cpp, right))
    return table


def _cell(lines: list[Text], number: int, *, dim: bool = False) -> tuple[Text, Text]:
    if not number:
        return Text(""), Text("")
    line = lines[number - 1].copy()
    if dim:
        line.stylize("dim")
    return Text(str(number), "dim"), line


def coloured(lines: tuple[str, ...], lexer: Lexer) -> list[Text]:
    """Give the lines of a program in the terminal's own colours."""
    coloured = Syntax("", lexer, theme=_THEME, background_color="default").highlight("\n".join(lines))
    return list(coloured.split("\n", allow_blank=True))
