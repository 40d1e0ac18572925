"""TL text to syntax tree. A line that does not parse costs one diagnostic and the rest is still read.

Blocks are given by indentation, as in Python; the paper's `end` may close them. A `#` starts a comment, which the
tree keeps: behind its statement, or above it.

Not here: what is legal (checker.py) and what a line looks like inside (grammar.lark, build_tree.py).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

from lark import Lark, Token
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

from qimeng_attention.errors import Diagnostic, DiagnosticError, Span
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.build_tree import BadNumber, LineBuilder
from qimeng_attention.tl.traverse import depth

MAX_LINES = 5_000  # far above any program a person or a model writes; bounds the work on hostile text
MAX_COLUMNS = 1_000
MAX_NESTING = 60  # brackets in a line and blocks in a file; Python's recursion limit is far above
MAX_DEPTH = 60  # of an expression's tree: a sum of so many terms

KEYWORDS = (
    "Kernel",
    "Size",
    "Scalar",
    "Tile",
    "Grid",
    "Warps",
    "Let",
    "Find",
    "Choose",
    "Allocate",
    "Copy",
    "Compute",
    "Reshape",
    "for",
    "if",
    "else",
    "end",
    "role",
    "Wait",
    "Release",
    "Pass",
    "Commit",
    "Barrier",
    "Fence",
    "Define",
    "Schedule",
)

_READABLE = {
    "NAME": "a name",
    "INT": "a number",
    "FLOAT": "a number",
    "COMPARE": "a comparison",
    "SIGN": "'+' or '-'",
    "FACTOR": "'*', '/', '//' or '%'",
    "COMMA": "','",
    "COLON": "':'",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "EQUAL": "'='",
    "SEMICOLON": "';'",
    "$END": "the end of the line",
    "AND_GET": "'and get'",
    "AND_ACCUMULATE": "'and accumulate'",
    "SPACE": "global, shared or register",
    "TRANSPOSE": "'.T'",
    "DOT": "'.'",
    "QUEUE": "gemm, copies or stores",
}


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    indent: int
    text: str
    comment: str


@dataclass
class _Reader:
    """The lines still to read, the comments waiting for their statement, and what was found wrong."""

    lines: list[_Line]
    position: int = 0
    waiting: list[str] = field(default_factory=list)
    findings: list[Diagnostic] = field(default_factory=list)

    def peek(self) -> _Line | None:
        """Give the next line that holds more than a comment, and keep the comments passed over."""
        while self.position < len(self.lines):
            line = self.lines[self.position]
            if line.text.strip():
                return line
            if line.comment:
                self.waiting.append(line.comment)
            self.position += 1
        return None

    def take_comments(self) -> tuple[str, ...]:
        comments, self.waiting = tuple(self.waiting), []
        return comments

    def report(self, code: str, line: int, message: str, hint: str, column: int = 1, end: int | None = None) -> None:
        span = Span(line, column, column + 1 if end is None else end)
        self.findings.append(Diagnostic(code, message, hint, span))


@cache
def _lark() -> Lark:
    grammar = resources.files("qimeng_attention.tl").joinpath("grammar.lark").read_text("utf-8")
    return Lark(
        grammar,
        parser="lalr",
        start=["line", "choice", "expression"],
        propagate_positions=True,
        maybe_placeholders=True,
    )


def parse(text: str, file: str = "<tl>") -> s.Program:
    """Parse a TL text at any of the three levels.

    Args:
        text: the program; at most 5,000 lines of 1,000 columns.
        file: its name in diagnostics.

    Raises:
        DiagnosticError: with every finding of codes TL001 to TL005.
    """
    program, findings = parse_with_findings(text)
    if findings:
        raise DiagnosticError(findings, source=text, file=file)
    return program


def parse_with_findings(text: str) -> tuple[s.Program, list[Diagnostic]]:
    """Parse as far as possible and give the tree together with what was wrong."""
    reader = _Reader([])
    reader.lines = _split(text, reader)
    program = _program(reader)
    return program, sorted(reader.findings, key=lambda d: d.span)


def parse_expression(text: str) -> s.Expr:
    """Parse one expression, such as a mask of a specification.

    Raises:
        DiagnosticError: TL001, the column counts within `text`.
    """
    reader = _Reader([])
    flat = text.replace("\n", " ").replace("\t", " ")
    if _too_deep(flat) or len(flat) > MAX_COLUMNS:
        reader.report("TL005", 1, "the expression is too long or too deeply nested", "split it")
    line = _Line(1, len(flat) - len(flat.lstrip()), flat, "")
    result = None if reader.findings else _parse_line(reader, line, "expression")
    if reader.findings:
        raise DiagnosticError(reader.findings, source=flat, file="<expression>")
    assert result is not None
    return result  # type: ignore[no-any-return]


def _split(text: str, reader: _Reader) -> list[_Line]:
    lines = []
    for number, raw in enumerate(text.split("\n"), start=1):
        if number > MAX_LINES:
            reader.report("TL005", number, f"the program is longer than {MAX_LINES} lines", "split it")
            break
        code, mark, comment = raw.expandtabs(4).rstrip().partition("#")
        if len(code) > MAX_COLUMNS or _too_deep(code):
            reader.report("TL005", number, "the line is too long or too deeply nested", "split it")
            continue
        code = code.rstrip()
        lines.append(_Line(number, len(code) - len(code.lstrip()), code, comment.strip() if mark else ""))
    return lines


def _too_deep(text: str) -> bool:
    depth = deepest = 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        deepest = max(deepest, depth)
    return max(deepest, text.count("not "), text.count("-")) > MAX_NESTING


# ------------------------------------------------------------------ blocks


def _program(reader: _Reader) -> s.Program:
    kernels: list[s.Kernel] = []
    defines: list[s.Define] = []
    while (line := reader.peek()) is not None:
        above = reader.take_comments()
        items = _parse_line(reader, line, "line") or []
        head = items[0] if items else None
        if isinstance(head, s.Define):
            reader.position += 1
            body = _indented(reader, line, 1)
            defines.append(replace(head, body=body, above=above, comment=line.comment))
            _skip_end(reader, line.indent)
        elif isinstance(head, s.Kernel):
            reader.position += 1
            kernels.append(_kernel(reader, replace(head, above=above, comment=line.comment), line.indent))
        else:
            reader.waiting[:0] = above
            if not items and line.text.split(maxsplit=1)[0] in ("Kernel", "Define"):  # a heading that does not parse
                reader.position += 1
            place = Span(line.number, line.indent + 1, len(line.text) + 1)
            kernels.append(_kernel(reader, s.Kernel("", None, (), span=place), line.indent))
    return s.Program(tuple(kernels), tuple(defines), reader.take_comments())


def _kernel(reader: _Reader, head: s.Kernel, indent: int) -> s.Kernel:
    body: list[s.Statement] = []
    schedule: tuple[s.Choice, ...] = ()
    note = ""
    while (line := reader.peek()) is not None:
        if line.text.lstrip().split(maxsplit=1)[0] in ("Kernel", "Define") and line.indent <= indent:
            break
        if line.text.strip() == "Schedule":
            reader.position += 1
            if schedule:
                reader.report(
                    "TL003",
                    line.number,
                    "the kernel has a Schedule already, found a second one",
                    "put all choices below one Schedule line",
                    line.indent + 1,
                    len(line.text) + 1,
                )
            note = line.comment
            schedule += _choices(reader, line)
            continue
        before = reader.position
        body += _block(reader, line.indent, 1, top=True)
        if reader.position == before:  # a line indented less than the kernel's first: read it on its own
            reader.report("TL002", line.number, "this line's indentation matches no block", "align it with its block")
            reader.position += 1
    return replace(head, body=tuple(body), schedule=schedule, schedule_comment=note)


def _choices(reader: _Reader, head: _Line) -> tuple[s.Choice, ...]:
    found = []
    following = reader.peek()
    if following is None or following.indent <= head.indent:
        _report_empty(reader, head)
    while (line := reader.peek()) is not None and line.indent > head.indent:
        above = reader.take_comments()
        choice = _parse_line(reader, line, "choice")
        if choice is not None:
            found.append(replace(choice, above=above, comment=line.comment))
        reader.position += 1
    if (line := reader.peek()) is not None and line.text.strip() == "end":
        reader.position += 1
    return tuple(found)


def _block(reader: _Reader, indent: int, depth: int, *, top: bool = False) -> list[s.Statement]:
    """Read the statements at one indentation."""
    body: list[s.Statement] = []
    wrong = indent  # the last line's indentation, where that has been reported
    while (line := reader.peek()) is not None and line.indent >= indent:
        word = line.text.split(maxsplit=1)[0]
        if top and (word in ("Kernel", "Define") or line.text.strip() == "Schedule"):
            break
        if line.indent > indent and line.indent != wrong:
            reader.report(
                "TL002",
                line.number,
                f"unexpected indentation of {line.indent} columns, expected {indent}",
                "indent only the bodies of for, if, role and Define",
                line.indent + 1,
                line.indent + 2,
            )
        wrong = max(indent, line.indent)
        above = reader.take_comments()
        items = _parse_line(reader, line, "line") or []
        reader.position += 1
        if not items and word in (
            "for",
            "if",
            "role",
            "Define",
        ):  # its heading is wrong, its body is still read
            following = reader.peek()
            if following is not None and following.indent > line.indent:
                _block(reader, following.indent, depth + 1)
            _skip_end(reader, line.indent)
        for n, item in enumerate(items):
            _accept(
                reader,
                body,
                item,
                line,
                depth,
                above if n == 0 else (),
                line.comment if n == len(items) - 1 else "",
            )
    return body


def _accept(
    reader: _Reader, body: list[s.Statement], item: Any, line: _Line, depth: int, above: tuple[str, ...], comment: str
) -> None:
    """Put one parsed item where it belongs, with the block below it if it opens one."""
    if item == "end":
        if not body or not isinstance(body[-1], s.For | s.If | s.Role):
            reader.report(
                "TL003",
                line.number,
                "`end` closes no block",
                "remove it, or align it with its `for`",
                line.indent + 1,
            )
        reader.waiting[:0] = [*above, *([comment] if comment else [])]
        return
    if item == "else":
        reader.waiting[:0] = [*above, *([comment] if comment else [])]  # they go to its first statement
        orelse = _indented(reader, line, depth + 1)
        if body and isinstance(body[-1], s.If) and not body[-1].orelse:
            body[-1] = replace(body[-1], orelse=orelse)
        else:
            reader.report("TL003", line.number, "`else` follows no `if`", "align it with its `if`", line.indent + 1)
        return
    if isinstance(item, s.Kernel | s.Define | str):
        reader.report(
            "TL003",
            line.number,
            "this heading cannot stand inside a block",
            "move it to the top level",
            line.indent + 1,
        )
        return
    item = replace(item, above=above, comment=comment)
    if isinstance(item, s.For | s.Role) or (isinstance(item, s.If) and not item.body):
        item = replace(item, body=_indented(reader, line, depth + 1))
    body.append(item)


def _indented(reader: _Reader, head: _Line, depth: int) -> tuple[s.Statement, ...]:
    following = reader.peek()
    if depth > MAX_NESTING:
        reader.report("TL005", head.number, "blocks are nested too deeply", "flatten them")
        return ()
    if following is None or following.indent <= head.indent:
        _report_empty(reader, head)
        return ()
    return tuple(_block(reader, following.indent, depth))


def _report_empty(reader: _Reader, head: _Line) -> None:
    reader.report(
        "TL004",
        head.number,
        "this block is empty, expected at least one indented line below it",
        "indent its lines below it, or remove the heading",
        head.indent + 1,
        len(head.text) + 1,
    )


def _skip_end(reader: _Reader, indent: int) -> None:
    line = reader.peek()
    if line is not None and line.text.strip() == "end" and line.indent == indent:
        reader.position += 1


# ------------------------------------------------------------------ one line


def _parse_line(reader: _Reader, line: _Line, start: str) -> Any:
    """Parse one line; on failure report TL001, or TL005 where it is too deep, and give None."""
    whole = (line.indent + 1, len(line.text) + 1)
    try:
        items = LineBuilder(line.number).transform(_lark().parse(line.text, start=start))
    except UnexpectedInput as error:
        if not any(d.span.line == line.number for d in reader.findings):
            message, hint, column, end = _explain(line.text, error, start)
            reader.report("TL001", line.number, message, hint, column, end)
        return None
    except VisitError as error:
        if isinstance(error.orig_exc, BadNumber):
            bad = error.orig_exc
            reader.report("TL001", line.number, str(bad), "write a smaller number", bad.column, bad.end_column)
            return None
        if not isinstance(error.orig_exc, RecursionError):
            raise
        items = None
    except RecursionError:
        items = None
    if items is None or depth(items) > MAX_DEPTH:
        reader.report(
            "TL005",
            line.number,
            f"an expression here is more than {MAX_DEPTH} operations deep",
            "compute a part of it on a line of its own",
            *whole,
        )
        return None
    return items


def _explain(text: str, error: UnexpectedInput, start: str) -> tuple[str, str, int, int]:
    word = (text.split() or [""])[0]
    column = getattr(error, "column", 1)
    column = column if isinstance(column, int) and column > 0 else len(text) + 1
    if isinstance(error, UnexpectedToken) and isinstance(error.token, Token) and error.token.type != "$END":
        found, end = f"'{error.token}'", column + len(str(error.token))
    elif isinstance(error, UnexpectedCharacters):
        found, end = f"'{error.char}'", column + 1
    else:
        found, column, end = "the end of the line", len(text) + 1, len(text) + 2
    if start == "line" and word not in KEYWORDS:
        column = len(text) - len(text.lstrip()) + 1
        near = difflib.get_close_matches(word, KEYWORDS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"begin the line with one of {', '.join(KEYWORDS)}"
        return f"'{word}' begins no statement", hint, column, column + len(word)
    expected = sorted(
        getattr(error, "accepts", None) or getattr(error, "allowed", None) or getattr(error, "expected", None) or []
    )
    words = sorted({_READABLE.get(e, f"'{e.lower()}'") for e in expected})
    hint = f"write `{_WORDS[found[1]]}`" if found[1:-1] in _WORDS else _form_of(word)
    return f"expected {_either(words)}, found {found}", hint, column, end


_WORDS = {"&": "and", "|": "or", "~": "not", "!": "not"}  # for the signs that Python and NumPy have


def _either(words: list[str]) -> str:
    if not words:
        return "something else"
    shown = words[:8]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _form_of(word: str) -> str:
    from qimeng_attention.tl.statements import EXAMPLES  # the table names each statement's form

    example = EXAMPLES.get(word)
    return f"write it like `{example}`" if example else "see the page of this statement in docs/tl"
