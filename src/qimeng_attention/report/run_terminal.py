"""A run of a model on the terminal, drawn by Rich on any console.

Not here: what is shown (run_page.py).
"""

from __future__ import annotations

from pygments.lexers.c_cpp import CppLexer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qimeng_attention.report.run_page import NOTED, TOLD, RunPage, Said, Tried
from qimeng_attention.report.terminal_page import coloured, facts_table, part, understood_group
from qimeng_attention.report.tl_lexer import TlLexer

_HEADS = ("", "stage", "sample", "try", "prompt", "answer", "tokens in", "tokens out", "cost", "seconds", "end")


def show_run(console: Console, page: RunPage, *, program: bool = True, full: bool = False) -> None:
    """Draw everything about a run; `program` also draws the last program, `full` every prompt and answer."""
    console.print(Text.assemble((page.name, "bold"), f"  {page.date}"))
    part(console, "what was asked for", Text(page.words or "no words were kept"))
    part(console, "who was asked, and how", facts_table(page.facts))
    meant: list[RenderableType] = [] if page.understood is None else [understood_group(page.understood, console.width)]
    if page.meant:
        meant.append(facts_table(page.meant))
    part(console, "what was understood", Group(*meant), empty=not meant)
    part(console, "calls", Group(_calls(page), facts_table(page.total)), empty=not page.calls)
    several = len({a.sample for a in page.attempts}) > 1
    part(console, "attempts", Group(*(_attempt(a, several) for a in page.attempts)), empty=not page.attempts)
    part(console, "outcome", facts_table(page.outcome))
    last = page.last
    if program and last is not None and last.program:
        part(console, f"program of {last.stage}: + marks a line that the model did not write", _program(last))
    for call in page.calls if full else ():
        part(console, f"call {call.number}: {call.stage}, sample {call.sample + 1}", _said(call))


def known(value: object) -> str:
    """Write a number, or that nobody knows it."""
    return "unknown" if value is None else f"${value:.4f}" if isinstance(value, float) else f"{value:,}"


def _calls(page: RunPage) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in _HEADS:
        table.add_column(Text(head, "dim"), justify="left" if head in ("stage", "end") else "right", overflow="fold")
    for c in page.calls:
        sizes = (f"{c.prompt_characters:,}", f"{c.answer_characters:,}")
        cost = (known(c.input_tokens), known(c.output_tokens), known(c.usd), f"{c.seconds:.1f}")
        end = c.end + (f": {c.why}" if c.why else "")
        cells = (str(c.number), c.stage, str(c.sample + 1), str(c.tried), *sizes, *cost, end)
        table.add_row(*map(Text, cells))
    return table


def _attempt(attempt: Tried, several: bool) -> Group:
    place = (f"sample {attempt.sample + 1}, " if several else "") + attempt.stage
    if attempt.failed:
        how = Text(f"refused by {attempt.failed}", "bold red")
    elif attempt.known == NOTED:
        how = Text("passed every gate", "bold green")
    else:
        how = Text("what came of it is not in the transcript", "bold yellow")
    told = " (as the model was told)" if attempt.known == TOLD else ""
    passed = f", after {', '.join(attempt.passed)}" if attempt.failed and attempt.passed else ""
    lines = [Text.assemble((place, "cyan"), "  ", how, passed + told)]
    lines += [Text(f"    {line}") for line in attempt.findings.splitlines()]
    return Group(*lines)


def _program(attempt: Tried) -> Table:
    table = Table.grid(padding=(0, 1))
    for justify in ("right", "left", "left"):
        table.add_column(justify=justify, overflow="fold")
    lexer = TlLexer() if attempt.language == "tl" else CppLexer()
    for number, line in enumerate(coloured(attempt.program, lexer), 1):
        mark = Text("+", "bold yellow") if number in attempt.added else Text("")
        table.add_row(Text(str(number), "dim"), mark, line)
    return table


def _said(call: Said) -> Group:
    turns: list[Text] = []
    for role, text in call.prompt:
        turns += [Text(f"[{role}]", "bold cyan"), Text(text), Text("")]
    return Group(*turns, Text(f"[{call.end}]", "bold cyan"), Text(call.answer or call.why))
