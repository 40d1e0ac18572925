from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from qimeng_attention.runtime.overlap import extent_of, interleaved, may_overlap

VIEWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=3).map(
    lambda axes: (tuple(extent for extent, _ in axes), tuple(stride for _, stride in axes))
)


def addresses(view: tuple[tuple[int, ...], tuple[int, ...]]) -> list[int]:
    shape, strides = view
    return [
        sum(index * stride for index, stride in zip(indices, strides, strict=True))
        for indices in itertools.product(*(range(extent) for extent in shape))
    ]


@given(VIEWS)
def test_a_view_that_is_passed_has_no_address_twice(view: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    found = addresses(view)

    assert may_overlap(*view) or len(set(found)) == len(found)


@given(VIEWS)
def test_the_extent_reaches_the_last_element(view: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    assert extent_of(*view) == (max(addresses(view)) + 1 if addresses(view) else 0)


@given(VIEWS, VIEWS, st.integers(-40, 40))
def test_views_called_interleaved_share_no_address(
    one: tuple[tuple[int, ...], tuple[int, ...]],
    other: tuple[tuple[int, ...], tuple[int, ...]],
    distance: int,
) -> None:
    shared = set(addresses(one)) & {address + distance for address in addresses(other)}

    assert not (interleaved(one, other, distance) and shared)


def test_slices_of_one_packed_tensor_are_interleaved() -> None:
    slice_of_packed = ((2, 100, 8, 64), (100 * 3 * 512, 3 * 512, 64, 1))

    assert interleaved(slice_of_packed, slice_of_packed, 512)
    assert interleaved(slice_of_packed, slice_of_packed, -1024)
    assert not interleaved(slice_of_packed, slice_of_packed, 64)


def test_rows_of_one_tensor_that_overlap_are_not_interleaved() -> None:
    rows = ((100, 64), (64, 1))

    assert not interleaved(rows, rows, 64)
    assert not may_overlap(*rows)
    assert may_overlap((100, 64), (0, 1))
    assert may_overlap((100, 64), (63, 1))
