"""Expressions in numbers: integers of the block, and values over a tile's named axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import Environment, TooLarge, Value, align, boolean, integer
from qimeng_attention.tl.functions import APPROXIMATIONS, FUNCTIONS, REDUCTIONS
from qimeng_attention.tl.parser import parse_expression

RNG = np.random.default_rng(3)
S = RNG.standard_normal((3, 8)).astype(np.float32)
M = RNG.standard_normal(3).astype(np.float32)
BIAS = RNG.standard_normal(8).astype(np.float32)
TILES = {"S": Value(S, ("q", "k")), "m": Value(M, ("q",)), "bias": Value(BIAS, ("k",))}
INDICES = {"q": np.arange(5, 8), "k": np.arange(16, 24)}
TENSORS = {
    "slopes": (np.array([0.5, 2.0], np.float32), "f32"),
    "document": (np.arange(20).reshape(2, 10) // 3, "i32"),
    "none": (np.zeros((0, 4), np.float32), "f32"),
}
INTS = {"Sk": 20, "head": 1, "batch": 0, "BN": 8}


def value(text: str, *, double: bool = False) -> Value:
    return Environment(INTS, {"scale": 0.25}, TILES, INDICES, TENSORS, double=double).evaluate(parse_expression(text))


# ------------------------------------------------------------------ integers


@given(st.integers(-1000, 1000), st.integers(-30, 30).filter(bool))
@settings(deadline=None)
def test_integer_division_is_python_s(a: int, b: int) -> None:
    ints = {"a": a, "b": b}

    assert integer(parse_expression("a // b"), ints) == a // b
    assert integer(parse_expression("a % b"), ints) == a % b
    assert integer(parse_expression("ceildiv(a, b)"), ints) == -(-a // b)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("-Sk + 2 * BN", -4),
        ("min(Sk, 3, BN)", 3),
        ("max(Sk, 3)", 20),
        ("clamp(-5, 0, Sk)", 0),
        ("clamp(5, 9, 3)", 3),
        ("abs(2 - BN)", 6),
        ("where(Sk > 3 and not BN == 8, 1, 2)", 2),
        ("where(0 < BN < Sk or Sk < 0, 7, 1 // 0)", 7),
    ],
)
def test_integer_expressions(text: str, result: int) -> None:
    assert integer(parse_expression(text), INTS) == result


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nowhere + 1", KeyError),
        ("1 // (Sk - 20)", ZeroDivisionError),
        ("0.5 + 1", ValueError),
        ("Sk / 2", ValueError),
        ("min(1)", ValueError),
        ("exp2(1)", ValueError),
        ("4611686018427387903 + Sk", TooLarge),
        ("Sk > 3", ValueError),
        ("ceildiv(1, 0)", ZeroDivisionError),
    ],
)
def test_what_is_no_integer_says_so(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        integer(parse_expression(text), INTS)


def test_a_condition_is_no_number() -> None:
    assert boolean(parse_expression("not (Sk < 3) and 1 < 2"), INTS)
    with pytest.raises(ValueError, match="not a condition"):
        boolean(parse_expression("Sk"), INTS)


# ------------------------------------------------------------------ tiles


def test_a_vector_broadcasts_along_the_axis_it_lacks_by_name() -> None:
    found = value("S * 2 - m + bias")

    assert found.axes == ("q", "k")
    np.testing.assert_allclose(found.data, S * 2 - M[:, None] + BIAS[None, :], rtol=1e-6)


def test_two_vectors_span_a_tile() -> None:
    found = value("bias - m")

    assert found.axes == ("k", "q")
    aligned = align(found, ("q", "k"), (3, 8))
    np.testing.assert_array_equal(aligned, BIAS[None, :] - M[:, None])


def test_axes_are_global_indices() -> None:
    found = value("k <= q + 14 and k < Sk")

    q, k = INDICES["q"][:, None], INDICES["k"][None, :]
    np.testing.assert_array_equal(align(found, ("q", "k"), (3, 8)), (k <= q + 14) & (k < 20))


def test_a_chain_of_comparisons_is_all_of_its_links() -> None:
    found = value("q < k <= 20 < Sk + 1")

    np.testing.assert_array_equal(
        align(found, ("q", "k"), (3, 8)), (INDICES["q"][:, None] < INDICES["k"]) & (INDICES["k"] <= 20)
    )


def test_an_index_outside_of_a_tensor_reads_zero() -> None:
    found = value("document[batch, k - 10]")  # 6 to 13, of 10

    np.testing.assert_array_equal(found.data, [2, 2, 2, 3, 0, 0, 0, 0])
    assert value("slopes[head] + slopes[head + 1] + slopes[-1]").data == 2.0
    np.testing.assert_array_equal(value("none[0, k]").data, np.zeros(8))


def test_reductions_leave_the_rows() -> None:
    np.testing.assert_array_equal(value("RowMax(S)").data, S.max(axis=1))
    np.testing.assert_allclose(value("RowSum(S * S)").data, (S * S).sum(axis=1), rtol=1e-6)
    assert value("RowMax(S + bias)").axes == ("q",)


def test_lane_sums_are_the_sums_of_a_fragment_s_columns() -> None:
    found = value("LaneSum(S)")

    assert found.axes == ("q", "lane")
    for lane in range(4):  # column c of an accumulator lies in lane (c % 8) // 2
        np.testing.assert_allclose(found.data[:, lane], S[:, 2 * lane] + S[:, 2 * lane + 1], rtol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_scans(reverse: bool, exclusive: bool) -> None:
    found = value("Scan S along k" + " reverse" * reverse + " exclusive" * exclusive)

    wanted = np.zeros_like(S)
    for c in range(8):
        part = (
            S[:, c + 1 :]
            if reverse and exclusive
            else S[:, c:]
            if reverse
            else S[:, :c]
            if exclusive
            else S[:, : c + 1]
        )
        wanted[:, c] = part.sum(axis=1)
    np.testing.assert_allclose(found.data, wanted, atol=1e-5)


def test_arithmetic_is_float32_or_float64_as_asked() -> None:
    assert value("m * scale").data.dtype == np.float32
    assert value("Sk / 3").data == np.float32(20 / 3)
    double = Environment(INTS, {}, {"x": Value(np.array([1 / 3]), ("q",))}, double=True)
    assert double.evaluate(parse_expression("exp(x)")).data[0] == np.exp(1 / 3)


MEANINGS = {
    "exp": np.exp,
    "exp2": np.exp2,
    "exp2_fma": np.exp2,
    "ln": lambda x: np.log(np.abs(x)),
    "log2": lambda x: np.log2(np.abs(x)),
    "tanh": np.tanh,
    "tanh_approx": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "rsqrt": lambda x: 1 / np.sqrt(np.abs(x)),
    "abs": np.abs,
    "min": lambda x: np.minimum(x, 0.25),
    "max": lambda x: np.maximum(x, 0.25),
    "clamp": lambda x: np.clip(x, 0.25, 0.5),
    "where": lambda x: np.where(x > 0, x, 0.25),
}


def test_every_function_has_a_meaning_here() -> None:
    assert set(MEANINGS) == set(FUNCTIONS) - REDUCTIONS - {"ceildiv"}


@pytest.mark.parametrize(("name", "other", "most"), [(f, *a) for f, a in APPROXIMATIONS.items()])
def test_an_approximation_keeps_within_its_error_and_uses_it(name: str, other: str, most: float) -> None:
    x = np.concatenate([np.linspace(-9, 9, 4001), [0.0, np.inf, -np.inf, 1e-30]]).astype(np.float32)

    x = x[np.isfinite(FUNCTIONS[name].meaning(x))]
    exact, found = (FUNCTIONS[f].meaning(x).astype(np.float64) for f in (name, other))

    off = np.abs(found - exact)[exact != 0] / np.abs(exact[exact != 0])
    assert most / 4 < off.max() <= most
    assert not found[exact == 0].any()


@pytest.mark.parametrize("name", MEANINGS)
def test_functions(name: str) -> None:
    text = {
        "ln": "ln(abs(m))",
        "log2": "log2(abs(m))",
        "sqrt": "sqrt(abs(m))",
        "rsqrt": "rsqrt(abs(m))",
        "min": "min(m, scale)",
        "max": "max(m, scale)",
        "clamp": "clamp(m, scale, 0.5)",
        "where": "where(m > 0, m, scale)",
    }.get(name, f"{name}(m)")

    wanted = MEANINGS[name](M.astype(np.float64))
    np.testing.assert_allclose(value(text).data, wanted, rtol=dict(APPROXIMATIONS.values()).get(name, 1e-5))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("exp2(-inf)", 0.0),
        ("ln(0)", -np.inf),
        ("sigmoid(-inf)", 0.0),
        ("softplus(-inf)", 0.0),
        ("1 / 0", np.inf),
        ("max(-inf, -inf) - 0", -np.inf),
    ],
)
def test_infinities_arise_as_on_the_device(text: str, result: float) -> None:
    assert value(text).data == result


def test_an_unknown_node_is_no_expression() -> None:
    with pytest.raises(KeyError):
        Environment({}).evaluate(s.Name("nothing"))
