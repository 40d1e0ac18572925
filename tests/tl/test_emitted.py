"""The interpreter's functions against the generated code's: the same steps, the same instructions, the same zeros."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qimeng_attention.translate
from qimeng_attention.build.nvrtc import CompileOptions
from qimeng_attention.tl import emitted
from qimeng_attention.tl.emitted import EMITTED, FORMULAS, INSTRUCTIONS
from qimeng_attention.tl.evaluate import Environment, Value
from qimeng_attention.tl.functions import FUNCTIONS
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.parser import parse_expression
from qimeng_attention.translate.sm80.context import FUNCTIONS as CALLED
from qimeng_attention.translate.sm80.context import INTERNAL

PRELUDE = "\n".join(
    p.read_text() for p in sorted((Path(qimeng_attention.translate.__file__).parent / "prelude").glob("*.cuh"))
)
_FUNCTION = re.compile(r"__device__ inline float (\w+)\(float x\) \{(.*?)\}", re.DOTALL)
BODIES = dict(_FUNCTION.findall(PRELUDE))
LEAST = 2.0**-126  # the smallest normal number of float32
REDUCTIONS = {"quad_max", "quad_sum"}  # of a row, over lanes
UNSTEPPED = {"abs", "sqrt", "rsqrt", "tanh_approx", "exp2_fma"}  # flush nothing: functions.py has the interpreter's


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Let infinities arise without a warning, as an Environment does."""
    with np.errstate(all="ignore"):
        yield


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


# ------------------------------------------------------------------ one text


def test_the_table_quotes_every_function_of_the_prelude() -> None:
    returned = {n: text for n, body in BODIES.items() for text in re.findall(r"return (.*?);", body)}
    asked = {n: text for n, body in BODIES.items() for text in re.findall(r'asm\("(\S+)', body)}
    written_out = {n: text for n, text in asked.items() if n != "exp2_fma"}  # that one is a polynomial (functions.py)

    assert len(_FUNCTION.findall(PRELUDE)) == len(BODIES)  # no generation has one of its own
    assert written_out == INSTRUCTIONS
    assert {n: text for n, text in returned.items() if n not in {*asked, *REDUCTIONS}} == FORMULAS


def test_the_interpreter_takes_the_steps_of_each_function_that_has_any() -> None:
    called = {n: name.removeprefix("tl::") for n, name in (CALLED | INTERNAL).items()}
    stepped = {n for n, name in called.items() if name in {**INSTRUCTIONS, **FORMULAS}}

    assert stepped - UNSTEPPED == {*EMITTED, "reciprocal"}


def test_the_same_instructions_flush_here_and_there() -> None:
    x = f32(2.0**-127)
    kept = {
        "ex2": emitted.exp2(f32(-127.0)).item(),
        "lg2": emitted.log2(x).item() + 127,
        "rcp": emitted.reciprocal(f32(2.0**127)).item(),
        "tanh": FUNCTIONS["tanh_approx"].meaning(x).item(),
    }

    assert {n for n, y in kept.items() if y == 0 or np.isinf(y)} == set(re.findall(r"(\w+)[\w.]*\.ftz", PRELUDE))


def test_nothing_else_is_compiled_to_flush() -> None:
    flags = " ".join(CompileOptions().flags())

    assert not re.search(r"ftz|fast_math|prec-", flags)


# ------------------------------------------------------------------ values

FLUSHED = [
    ("exp2", -126.0, LEAST),
    ("exp2", -127.0, 0.0),
    ("exp2", -149.0, 0.0),
    ("exp", -87.0, np.exp(-87.0)),
    ("exp", -88.0, 0.0),  # 6.05e-39
    ("exp", -103.0, 0.0),
    ("log2", LEAST, -126.0),
    ("log2", 2.0**-127, -np.inf),
    ("log2", 2.0**-149, -np.inf),
    ("ln", LEAST, -126 * np.log(2.0)),
    ("ln", 2.0**-127, -np.inf),
    ("reciprocal", LEAST, 2.0**126),
    ("reciprocal", 2.0**-127, np.inf),
    ("reciprocal", -(2.0**-149), -np.inf),
    ("reciprocal", 2.0**126, LEAST),
    ("reciprocal", 2.0**127, 0.0),
    ("sigmoid", -87.0, np.exp(-87.0)),
    ("sigmoid", -88.0, 0.0),
    ("softplus", -10.0, 4.5418e-05),  # of 4.53989e-05
    ("softplus", -16.0, 2.0**-23),
    ("softplus", -17.0, 0.0),
    ("softplus", -88.0, 0.0),
    ("tanh", 2.0**-26, 0.0),
    ("sqrt", 2.0**-126, 2.0**-63),
    ("sqrt", 2.0**-148, 2.0**-74),
    ("rsqrt", 2.0**-148, 2.0**74),
    ("tanh_approx", 2.0**-149, 2.0**-149),
    ("exp2_fma", -126.0, LEAST),
    ("exp2_fma", -127.0, 0.0),
    ("exp2_fma", -149.0, 0.0),
]


@pytest.mark.parametrize(("name", "x", "wanted"), FLUSHED)
def test_values_about_the_smallest_normal_number(name: str, x: float, wanted: float) -> None:
    text = "1 / x" if name == "reciprocal" else f"{name}(x)"
    environment = Environment({}, tiles={"x": Value(f32(x), ("q",))}, emitted=True)

    found = environment.evaluate(parse_expression(text)).data

    np.testing.assert_allclose(found, f32(wanted), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("x * 1.0", 2.0**-127), ("x + x", LEAST), ("x - 0.0", 2.0**-127), ("max(x, 0)", 2.0**-127)],
)
def test_plain_arithmetic_keeps_numbers_that_instructions_flush(text: str, wanted: float) -> None:
    environment = Environment({}, tiles={"x": Value(f32(2.0**-127), ("q",))}, emitted=True)

    assert environment.evaluate(parse_expression(text)).data.item() == wanted


def test_a_flushed_zero_keeps_its_sign_and_exponentials_below_keep_their_bits() -> None:
    assert np.signbit(emitted.flush(f32(-(2.0**-149)))).all()
    assert np.isnan(emitted.divide(f32(0.0), f32(2.0**-127))).all()  # 0 * inf
    half = FUNCTIONS["exp2_fma"].meaning(f32(-126.5)).item()
    assert 0 < half < LEAST / 2  # the fraction without its leading 1, of 0.71 * 2^-126


@pytest.mark.parametrize("name", EMITTED)
def test_the_steps_mean_the_function(name: str) -> None:
    x = np.linspace(0.05, 9, 1001).astype(np.float32)

    np.testing.assert_allclose(EMITTED[name](x), FUNCTIONS[name].meaning(x), rtol=3e-6, atol=3e-7)
    assert np.isnan(EMITTED[name](f32(np.nan))).all()


def test_the_way_round_a_lost_tail_is_as_near_as_its_page_says() -> None:
    x = np.linspace(-80, 8, 1_000_001).astype(np.float32)

    steps = np.where(x < -8, emitted.exp(x), emitted.softplus(x))

    np.testing.assert_allclose(steps, np.logaddexp(0, x.astype(np.float64)), rtol=2e-4)
    assert (emitted.softplus(x)[x < -17] == 0).all()
