"""Macros written out: their names never meet a program's, whatever it calls its tiles."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check, check_text
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.macros import expand, library
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import head, print_program
from qimeng_attention.tl.traverse import statements, words_in
from tl.fuzzing import PROGRAMS

CAUSAL = (
    (PROGRAMS / "gqa_causal.tl")
    .read_text("utf-8")
    .split("\nSchedule")[0]
    .replace("BM = 128, BN = 64", "BM = 16, BN = 16")
    .replace("D = 128", "D = 16")
)
LOCALS = ("m_new", "m_safe", "alpha")


def lines(text: str) -> list[str]:
    """Write out a fragment's macros and print it."""
    program = parse(text)
    kernel, found = expand(program.kernels[0], program.defines)
    assert not found, found
    return [head(n) for n in statements(kernel.body)]


def findings(text: str) -> list[tuple[str, int]]:
    with pytest.raises(DiagnosticError) as caught:
        check_text(text)
    return [(d.code, d.span.line) for d in caught.value.diagnostics]


# ------------------------------------------------------------------ names


def test_a_local_keeps_its_name_where_that_is_free() -> None:
    assert "Compute max(m, RowMax(S)) and get m_new" in lines("Compute OnlineSoftmax S, O, m, l with c")


def test_a_local_gives_way_to_a_name_of_the_program() -> None:
    written = lines("Compute 1 + m and get m_new\nCompute OnlineSoftmax S, O, m, l with c\nCompute m_new * 2 and get z")

    assert written[1] == "Compute max(m, RowMax(S)) and get m_new_2"
    assert written[2].startswith("Compute where(m_new_2 == -inf")
    assert written[-1] == "Compute m_new * 2 and get z"


def test_a_local_gives_way_to_a_name_that_is_only_read() -> None:
    written = lines("Compute OnlineSoftmax S, O, m, l with c\nCompute alpha * 2 and get z")

    assert [x for x in written if re.search(r"\balpha\b", x)] == ["Compute alpha * 2 and get z"]


def test_a_local_gives_way_to_an_argument_and_to_a_value() -> None:
    written = lines("Compute OnlineSoftmax S, O, alpha, l with m_new")

    assert written[0] == "Compute max(alpha, RowMax(S)) and get m_new_2"
    assert written[2] == "Compute exp2(alpha * m_new - m_safe * m_new) and get alpha_2"


def test_a_value_is_not_mistaken_for_an_operand() -> None:
    written = lines("Define F S with c\n    Compute S * c and get new S\n\nCompute F x with S + c")

    assert written == ["Compute x * (S + c) and get new x"]


def test_an_operand_is_not_mistaken_for_a_value() -> None:
    written = lines("Define F S with c\n    Compute S * c and get new S\n\nCompute F c with 2")

    assert written == ["Compute c * 2 and get new c"]


def test_operands_may_change_places() -> None:
    assert lines("Define F a, b\n    Compute a - b and get new a\n\nCompute F b, a") == ["Compute b - a and get new b"]


def test_each_use_has_locals_of_its_own() -> None:
    written = lines("Compute OnlineSoftmax S, O, m, l with c\nCompute OnlineSoftmax T, U, n, k with c")

    made = [x.split(" and get ")[1] for x in written if "and get new " not in x]
    assert made == ["m_new", "m_safe", "alpha", "m_new_2", "m_safe_2", "alpha_2"]


@pytest.mark.parametrize("names", list(itertools.permutations(LOCALS)), ids="-".join)
def test_a_program_that_uses_the_macro_s_names_means_the_same(names: tuple[str, str, str]) -> None:
    renamed = CAUSAL
    for old, new in zip(("O", "m", "l"), names, strict=True):
        renamed = renamed.replace(f"Allocate {old} in", f"Allocate {new} in")
    renamed = (
        renamed.replace("OnlineSoftmax S, O, m, l", f"OnlineSoftmax S, {names[0]}, {names[1]}, {names[2]}")
        .replace("accumulate O", f"accumulate {names[0]}")
        .replace(
            "where(l == 0, 0, O / l) and get new O",
            f"where({names[2]} == 0, 0, {names[0]} / {names[2]}) and get new {names[0]}",
        )
        .replace("Copy O (BM", f"Copy {names[0]} (BM")
        .replace(
            "where(l == 0, -inf, m * scale + ln(l))",
            f"where({names[2]} == 0, -inf, {names[1]} * scale + ln({names[2]}))",
        )
    )
    assert not set(LOCALS) & words_in(parse(CAUSAL).kernels[0])
    rng = np.random.default_rng(5)
    sizes = {"B": 1, "Sq": 20, "Sk": 37, "Hq": 2, "Hk": 1}
    inputs = {
        n: rng.standard_normal((1, 20 if n == "Q" else 37, 2 if n == "Q" else 1, 16)).astype(np.float32) for n in "QKV"
    }

    one, other = (interpret(check_text(t)[0], sizes, inputs, {"scale": 0.1}) for t in (CAUSAL, renamed))

    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


# ------------------------------------------------------------------ what a macro may hold


def test_values_reach_into_loops_and_loops_have_variables_of_their_own() -> None:
    text = "Define F S with n\n    Let last = n + 1\n    for i = 0 : last\n        Compute S * i and get new S\n\n"

    written = lines(text + "Let i = 3\nLet last = 4\nCompute F x with i + last")

    assert written == [
        "Let i = 3",
        "Let last = 4",
        "Let last_2 = i + last + 1",
        "for i_2 = 0 : last_2",
        "Compute x * i_2 and get new x",
    ]


def test_macros_in_macros() -> None:
    text = (
        "Define G a\n    Compute a + 1 and get t\n    Compute t and get new "
        "a\n\nDefine F a\n    Compute a * 2 and get t\n    Compute G t\n\n"
    )

    written = lines(text + "Compute F x")

    assert written == ["Compute x * 2 and get t", "Compute t + 1 and get t_2", "Compute t_2 and get new t"]


def test_a_program_s_definition_replaces_the_library_s() -> None:
    assert lines("Define OnlineSoftmax S\n    Compute S and get new S\n\nCompute OnlineSoftmax x") == [
        "Compute x and get new x"
    ]


def test_comments_move_to_the_first_statement() -> None:
    program = parse("# above\nCompute OnlineSoftmax S, O, m, l with c  # behind")

    kernel, _ = expand(program.kernels[0], ())

    assert kernel.body[0].above == ("above", "behind")


@pytest.mark.parametrize(("word", "sign"), [("Add", "+"), ("Subtract", "-"), ("Multiply", "*"), ("Divide", "/")])
def test_word_operators(word: str, sign: str) -> None:
    value = f"A {sign} (x + 1)"

    assert lines(f"Compute {word} A, x + 1 and get new A") == [f"Compute {value} and get new A"]


def test_the_library_is_text_that_prints_as_it_parses() -> None:
    program = s.Program((), tuple(library().values()))

    assert parse(print_program(program)) == program


# ------------------------------------------------------------------ findings


def test_findings_in_a_macro_speak_of_the_line_that_uses_it() -> None:
    text = CAUSAL.replace("Allocate m in register (BM q)", "Allocate m in register (BN k)")
    line = text.split("\n").index("    Compute OnlineSoftmax S, O, m, l with scale * log2e") + 1

    assert line in {place for _, place in findings(text)}
    assert all(place <= text.count("\n") + 1 for _, place in findings(text))


def test_findings_in_a_value_have_its_column() -> None:
    text = CAUSAL.replace("with scale * log2e", "with scale * logge")

    with pytest.raises(DiagnosticError) as caught:
        check_text(text)

    (found,) = caught.value.diagnostics
    source = text.split("\n")[found.span.line - 1]
    assert source[found.span.column - 1 : found.span.end_column - 1] == "logge"


@pytest.mark.parametrize(
    ("define", "use", "code"),
    [
        ("Define F S\n    Compute F S\n", "Compute F S", "TL109"),
        ("Define F S\n    Compute G S\n\nDefine G S\n    Compute F S\n", "Compute F S", "TL109"),
        ("Define F S, S\n    Compute S and get new S\n", "Compute F S, S", "TL102"),
        (
            "Define F S\n    Compute S and get new S\n\nDefine F S\n    Compute S and get new S\n",
            "Compute F S",
            "TL102",
        ),
        ("Define F S\n    Compute S and get new S\n", "Compute F S with 2", "TL108"),
        ("Define F S\n    Compute S and get new S\n", "Compute F exp(S)", "TL108"),
        ("Define F S\n    Compute S and get new S\n", "Compute F S and get T", "TL108"),
    ],
)
def test_wrong_macros_end_in_one_finding(define: str, use: str, code: str) -> None:
    text = define + "\n" + CAUSAL.replace("    Compute Mask", "    " + use + "\n    Compute Mask")

    assert [c for c, _ in findings(text)] == [code]


def test_a_wrong_use_does_not_hide_another() -> None:
    text = CAUSAL.replace("    Compute Mask", "    Compute OnlineSoftmax S\n    Compute Nothing S\n    Compute Mask")

    assert [c for c, _ in findings(text)] == ["TL108", "TL109"]


def test_expansion_is_bounded() -> None:
    many = "".join(f"Define F{n} S\n" + f"    Compute F{n + 1} S\n" * 40 + "\n" for n in range(7))

    program = parse(many + "Define F7 S\n    Compute S and get new S\n\nKernel a\nCompute F0 S\n")

    _, found = expand(program.kernels[0], program.defines)
    assert [d.code for d in found] == ["TL005"]


def test_a_checked_program_holds_no_macros() -> None:
    (checked,) = check(parse(CAUSAL))

    assert not any(isinstance(n, s.Apply) for n in statements(checked.kernel.body))
