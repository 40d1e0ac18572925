"""Text to tree and back: nothing is lost, and what the paper writes parses as it stands."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.parser import MAX_COLUMNS, MAX_LINES, parse, parse_expression, parse_with_findings
from qimeng_attention.tl.printer import expression, print_program, statement_lines
from strategies import EXPRESSIONS, programs
from tl.fuzzing import PROGRAMS as FOLDER

SLOW = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
SHIPPED = sorted(FOLDER.glob("*.tl"))


# ------------------------------------------------------------------ there and back


@given(programs())
@SLOW
def test_a_printed_program_parses_to_the_same_tree(program: s.Program) -> None:
    text = print_program(program)
    assume(max(map(len, text.split("\n"))) <= MAX_COLUMNS)

    assert parse(text) == program


@given(EXPRESSIONS)
@SLOW
def test_a_printed_expression_parses_to_the_same_tree(e: s.Expr) -> None:
    text = expression(e)
    assume(len(text) <= MAX_COLUMNS)

    assert parse_expression(text) == e


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_program_survives_printing(path) -> None:
    program = parse(path.read_text("utf-8"))

    text = print_program(program)

    assert parse(text) == program
    assert print_program(parse(text)) == text


def test_a_dot_in_a_choice_is_no_part_of_a_number() -> None:
    text = "Kernel k\nSize B\nSchedule\n    ring 2 . x\n    ring a . 5\n"
    program = parse(text)

    assert parse(print_program(program)) == program


def test_comments_stay_with_their_statements() -> None:
    text = """# of the kernel
Kernel a for a100  # behind it

# above, first line
# above, second line
Size B  # behind
for i = 0 : B  # of the loop
    # inside
    Barrier
    # before the end
end  # at the end
if B > 0
    Commit
# above the else
else  # behind the else
    Barrier
Schedule  # of the schedule
    # above a choice
    ring K stages 2  # behind a choice
# below
"""

    printed = print_program(parse(text))

    for words in (
        "of the kernel",
        "behind it",
        "above, first line",
        "above, second line",
        "behind",
        "of the loop",
        "inside",
        "before the end",
        "at the end",
        "above the else",
        "behind the else",
        "of the schedule",
        "above a choice",
        "behind a choice",
        "below",
    ):
        assert f"# {words}" in printed
    assert parse(printed) == parse(print_program(parse(printed)))


# ------------------------------------------------------------------ the paper's forms

PAPER = {
    "Copy A from global to shared": s.Copy("A", "global", "shared"),
    "Copy A (BM, BK) in coordinate [L = i] from global to shared": s.Copy(
        "A", "global", "shared", (s.Dim(s.Name("BM")), s.Dim(s.Name("BK"))), (s.Coordinate(s.Name("i"), "L"),)
    ),
    "Allocate A in global (M, K) with offset batch_offset": s.Allocate(
        "A", "global", (s.Dim(s.Name("M")), s.Dim(s.Name("K"))), offset=s.Name("batch_offset")
    ),
    "Allocate C in register (BM, BN)": s.Allocate("C", "register", (s.Dim(s.Name("BM")), s.Dim(s.Name("BN")))),
    "Compute GEMM A, B and get S": s.Gemm(s.Operand("A"), s.Operand("B"), "S"),
    "Compute GEMM Q, K.T and get S": s.Gemm(s.Operand("Q"), s.Operand("K", True), "S"),
    "Compute GEMM A, B and accumulate S": s.Gemm(s.Operand("A"), s.Operand("B"), "S", accumulate=True),
    "Compute Multiply A, x and get new A": s.Apply("Multiply", (s.Name("A"), s.Name("x")), (), "A", True),
    "Compute Multiply A, x and get B": s.Apply("Multiply", (s.Name("A"), s.Name("x")), (), "B"),
    "Compute Softmax A": s.Apply("Softmax", (s.Name("A"),)),
    "Reshape G from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)": s.Reshape(
        "G", ("MMA_C", "MMA_M", "MMA_N"), ("MMA_A", "MMA_M", "MMA_N_new")
    ),
}


@pytest.mark.parametrize("line", PAPER)
def test_a_statement_of_the_paper_parses(line: str) -> None:
    assert parse(line).kernels[0].body == (PAPER[line],)


@pytest.mark.parametrize(
    "loop", ["for i = 0: N\n    Barrier\nend", "for i in 0: N :\n    Barrier", "for i = 0 : N\n    Barrier"]
)
def test_the_forms_of_a_loop_are_one(loop: str) -> None:
    (n,) = parse(loop).kernels[0].body

    assert n == s.For("i", (s.Range(s.Num(0), s.Name("N")),), (s.Barrier(),))


def test_semicolons_join_statements_of_one_line() -> None:
    program = parse("if first < last : Wait K.full ; Release K\nWait copies pending 0 ; Barrier  # both")

    branch, wait, barrier = program.kernels[0].body
    assert isinstance(branch, s.If)
    assert branch.body == (s.Wait("full", "K"), s.Release("K"))
    assert (wait, barrier.comment) == (s.Wait("copies", None, s.Num(0)), "both")


def test_an_else_belongs_to_its_if() -> None:
    (n,) = parse("if a > 0\n    Commit\nelse\n    Barrier\n").kernels[0].body

    assert n.orelse == (s.Barrier(),)
    assert statement_lines(n) == ["if a > 0", "    Commit", "else", "    Barrier"]


# ------------------------------------------------------------------ texts that are none


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("Define 5\n    Barrier\n", "TL001", 1),
        ("Kernel 5\nBarrier\n", "TL001", 1),
        ("Kernel a\nKernel\n", "TL001", 2),
        ("Kernel a\n    Size B\nend\nend", "TL003", 3),
        ("Kernel a\nSchedule\nSize B", "TL004", 2),
        ("for i = 0 : 2", "TL004", 1),
        ("Size " + "a" * MAX_COLUMNS, "TL005", 1),
        ("Barrier\n" * (MAX_LINES + 3), "TL005", MAX_LINES + 1),
        ("Let x = " + "(" * 100, "TL005", 1),
        ("Let x = 1e999", "TL001", 1),
        ("Let x = 4611686018427387904", "TL001", 1),
        ("Allocate K in shared (a) swizzle 99999999999999999999", "TL001", 1),
    ],
)
def test_a_wrong_text_ends_in_a_finding(text: str, code: str, line: int) -> None:
    _, found = parse_with_findings(text)

    assert (found[0].code, found[0].span.line) == (code, line)
    assert len(found) <= 2


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "   \t "])
def test_a_text_without_statements_is_an_empty_program(text: str) -> None:
    assert parse(text).kernels == ()


@pytest.mark.parametrize(("text", "column"), [("a +", 4), ("a ) b", 3), ("1 << 2", 4), ("", 1), ("(" * 100, 1)])
def test_a_wrong_expression_is_refused_with_its_column(text: str, column: int) -> None:
    with pytest.raises(DiagnosticError) as caught:
        parse_expression(text)

    assert caught.value.diagnostics[0].span.column == column
