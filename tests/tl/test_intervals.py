"""Stretches of iterations against brute force: none too many for `all_true`, none too few for `any_true`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import Environment, integer
from qimeng_attention.tl.intervals import Stretch, all_true, any_true
from qimeng_attention.tl.parser import parse_expression
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.types import Checked, Origin

ITERATIONS = range(-3, 24)


@dataclass(frozen=True)
class Tile:
    """A tile of rows and columns at q = block * BM and k = i * BN, and the sizes around it."""

    rows: int
    columns: int
    ints: dict[str, int]

    @property
    def fixed(self) -> dict[str, int]:
        return {"BM": self.rows, "BN": self.columns}

    def passes(self, condition: s.Expr, i: int) -> np.ndarray:
        q = self.ints["block"] * self.rows + np.arange(self.rows)
        k = i * self.columns + np.arange(self.columns)
        value = Environment({**self.fixed, **self.ints, "i": i}, indices={"q": q, "k": k}).evaluate(condition)
        return np.asarray(value.data)


def all_stretch(condition: s.Expr, tile: Tile) -> Stretch:
    places = {"S": {"q": Origin(parse_expression("block * BM")), "k": Origin(parse_expression("i * BN"))}}
    checked = Checked(s.Kernel("", None, ()), "code", (), tile.fixed, {}, {}, {}, (), (), s.Grid(()))
    return all_true(condition, places, {"q": tile.rows, "k": tile.columns}, "i", checked)


def any_stretch(condition: s.Expr, tile: Tile) -> Stretch:
    origins = {"q": parse_expression("block * BM"), "k": parse_expression("i * BN")}
    return any_true(condition, origins, {"q": s.Name("BM"), "k": s.Name("BN")}, "i", tile.fixed)


def inside(stretch: Stretch, tile: Tile) -> set[int]:
    if stretch.never:
        return set()
    ints = {**tile.fixed, **tile.ints}
    start = -(10**9) if stretch.start is None else integer(stretch.start, ints)
    stop = 10**9 if stretch.stop is None else integer(stretch.stop, ints)
    return {i for i in ITERATIONS if start <= i < stop}


_tiles = st.builds(
    lambda rows, columns, block, sq, sk, w: Tile(rows, columns, {"block": block, "Sq": sq, "Sk": sk, "W": w}),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([1, 4, 8, 16]),
    st.integers(0, 5),
    st.integers(0, 90),
    st.integers(0, 90),
    st.integers(0, 40),
)
_terms = st.sampled_from(
    [
        "k",
        "q",
        "Sk",
        "Sq",
        "W",
        "k - q",
        "q + Sk - Sq",
        "q - W",
        "2 * k",
        "k * 3 - q",
        "-k",
        "k // 8",
        "q // 4",
        "k % 4",
        "i",
        "i % 8",
        "min(i, 5)",
        "i // 3",
        "min(k, Sk)",
        "max(q, W)",
        "(i + 1) * BN",
        "(k + 3) * 2",
        "i * i",
        "i * W",
        "block",
        "7",
        "k // 4 + k",
        "i % 8 + k",
        "q * k",
        "abs(k - q)",
        "abs(k // 4 - q // 4)",
        "q // 8 - k // 8",
        "k // 8 + 3",
        "(k + 3) // 4",
        "q // W",
    ]
)


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    """One or two affine (or nearly affine) comparisons in a chain."""
    sign = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    text = f"{draw(_terms)} + {draw(st.integers(-20, 20))} {draw(sign)} {draw(_terms)}"
    return text + (f" {draw(sign)} {draw(_terms)}" if draw(st.integers(0, 4)) == 0 else "")


_conditions = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=4,
)
THOROUGH = settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@given(_conditions, _tiles)
@THOROUGH
def test_where_all_is_claimed_every_element_passes(text: str, tile: Tile) -> None:
    condition = parse_expression(text)

    for i in inside(all_stretch(condition, tile), tile):
        assert tile.passes(condition, i).all(), i


@given(_conditions, _tiles)
@THOROUGH
def test_outside_of_any_no_element_passes(text: str, tile: Tile) -> None:
    condition = parse_expression(text)
    claimed = inside(any_stretch(condition, tile), tile)

    for i in set(ITERATIONS) - claimed:
        assert not tile.passes(condition, i).any(), i


EXACT = [
    "k <= q + Sk - Sq",
    "k < Sk",
    "k <= q + Sk - Sq and k < Sk",
    "k >= q - W",
    "q - k < W and k <= q",
    "k < W or k <= q",
    "not (k > q)",
    "not (k > q or k >= Sk)",
    "q - W <= k <= q",
]


@pytest.mark.parametrize("text", EXACT)
@given(_tiles)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_usual_masks_lose_no_iteration(text: str, tile: Tile) -> None:
    condition = parse_expression(text)

    everywhere = {i for i in ITERATIONS if tile.passes(condition, i).all()}
    if " or " not in text:  # of two stretches that overlap in part, one is kept
        assert inside(all_stretch(condition, tile), tile) == everywhere
    somewhere = {i for i in ITERATIONS if tile.passes(condition, i).any()}
    assert somewhere <= inside(any_stretch(condition, tile), tile)


@pytest.mark.parametrize(
    "text", ["abs(q - k) <= 7", "q // 16 == k // 16", "abs(q // 8 - k // 8) <= 2", "k // 5 < W", "W <= k // 5 + 2"]
)
def test_windows_and_blocks_bound_the_loop_up_to_a_tile(text: str) -> None:
    condition = parse_expression(text)
    for block in range(5):
        tile = Tile(16, 8, {"block": block, "Sq": 90, "Sk": 90, "W": 6})
        needed = [i for i in ITERATIONS if tile.passes(condition, i).any()]
        spare = inside(any_stretch(condition, tile), tile) - set(range(min(needed) - 2, max(needed) + 3))

        assert not spare


def test_bounds_are_written_with_the_names_of_the_program() -> None:
    tile = Tile(64, 32, {"block": 0, "Sq": 0, "Sk": 0, "W": 0})

    causal = all_stretch(parse_expression("k <= q + Sk - Sq"), tile)
    window = all_stretch(parse_expression("k > q - W"), tile)

    assert causal.stop is not None
    assert window.start is not None
    assert expression(causal.stop) == "(block * BM + Sk - Sq + 1) // BN"
    assert expression(window.start) == "ceildiv(block * BM - W + 64, BN)"


@pytest.mark.parametrize("text", ["i % 8 <= k", "min(i, 5) + k <= q", "k // 8 + k <= q", "i * i <= q", "i * W <= q"])
def test_what_is_not_linear_in_the_loop_is_left_undecided(text: str) -> None:
    tile = Tile(16, 8, {"block": 2, "Sq": 40, "Sk": 40, "W": 9})

    assert all_stretch(parse_expression(text), tile).never
    assert any_stretch(parse_expression(text), tile) == Stretch()
