from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qimeng_attention.runtime.expressions import evaluate, names, parse, plain, show

SIZES = {"Sq": 1000, "Sk": 777, "Hq": 8, "Hk": 0}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (128, 128),
        ("Sq", 1000),
        (["+", "Sq", 1, 2], 1003),
        (["-", "Sk", "Sq"], -223),
        (["*", "Sq", "Hq"], 8000),
        (["//", ["-", "Sk", "Sq"], 2], -112),
        (["%", "Sq", 64], 40),
        (["min", "Sq", "Sk"], 777),
        (["max", "Sq", "Sk", 5000], 5000),
        (["clamp", "Sq", 0, "Sk"], 777),
        (["clamp", 5, 9, 3], 3),
        (["ceildiv", "Sq", 128], 8),
        (["ceildiv", 0, 128], 0),
        (["*", 3_000_000_000, 3_000_000_000], 9_000_000_000_000_000_000),
    ],
)
def test_an_expression_has_its_value(value: object, expected: int) -> None:
    assert evaluate(parse(value), SIZES) == expected


@pytest.mark.parametrize(
    "value", [True, None, 1.5, [], ["pow", 1, 2], ["+", 1], ["-", 1], ["ceildiv", 1, 2, 3], [1, 2], {"a": 1}]
)
def test_anything_else_is_no_expression(value: object) -> None:
    with pytest.raises(ValueError, match=r"expected|arguments"):
        parse(value)


def test_deep_nesting_is_refused() -> None:
    value: object = 1
    for _ in range(200):
        value = ["+", value, 1]

    with pytest.raises(ValueError, match="too deeply"):
        parse(value)


def test_division_by_a_zero_size_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        evaluate(parse(["%", "Hq", "Hk"]), SIZES)


def test_an_expression_reads_like_tl() -> None:
    assert show(parse(["ceildiv", ["-", "Sk", "Sq"], 128])) == "ceildiv(Sk - Sq, 128)"
    assert show(parse(["*", ["+", "Sq", 1], ["//", "Hq", 2]])) == "(Sq + 1) * (Hq // 2)"


def test_names_are_all_sizes_of_an_expression() -> None:
    assert set(names(parse(["+", "Sq", ["min", "Sk", 3]]))) == {"Sq", "Sk"}


JSON = st.recursive(
    st.integers() | st.sampled_from(sorted(SIZES)),
    lambda inner: st.tuples(st.sampled_from(["+", "-", "*", "min", "max"]), inner, inner).map(list),
    max_leaves=8,
)


@given(JSON)
def test_json_comes_back_as_it_was(value: object) -> None:
    assert plain(parse(value)) == value
