"""Head dims that are no multiple of 64 in both compilers: bounds of columns, swizzled pieces, boxes, and the SASS."""

from __future__ import annotations

import re

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.build import Cache, build, find_toolchain
from qimeng_attention.errors import DiagnosticError, EnvironmentMissing
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.layout import completed, swizzle_for
from qimeng_attention.tl.parser import parse
from qimeng_attention.translate import Translation, translate


def planned(target: str, dqk: int, dv: int = 0, **fields: object) -> str:
    spec = AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": dqk, "Dv": dv or dqk, "mask": "causal", **fields})
    return plan(spec, targets.get(target)).code


def translated(code: str) -> Translation:
    return translate(schedule(parse(code)))[0]


def report_of(source: str, name: str, arch: str, threads: int, shared_bytes: int, target):
    try:
        tools = find_toolchain()
    except EnvironmentMissing as missing:
        pytest.skip(f"needs the build extra: {missing.message}")
    return build(
        source, name=name, arch=arch, threads=threads, shared_bytes=shared_bytes, target=target,
        cache=Cache.disabled(), toolchain=tools,
    ).report  # fmt: skip


# ------------------------------------------------------------------ rows in shared memory


@pytest.mark.parametrize(
    ("columns", "swizzle", "taken"),
    [(32, 64, 32), (48, 128, 64), (64, 128, 64), (80, 64, 96), (96, 64, 96), (112, 128, 128), (208, 64, 224)],
)
def test_a_row_lies_in_the_pieces_that_leave_least_empty(columns: int, swizzle: int, taken: int) -> None:
    assert swizzle_for(2 * columns) == swizzle
    assert completed(2 * columns, swizzle) == 2 * taken


def test_a_row_of_no_whole_step_is_not_swizzled() -> None:
    assert swizzle_for(2 * 40) is None
    assert completed(80, None) == 80


@pytest.mark.cuda
def test_no_two_chunks_share_a_place_and_eight_rows_share_no_bank() -> None:
    """The compiler evaluates the prelude's own functions; a layout that fails does not compile."""
    columns = {128: (48, 64, 112, 128, 176, 256), 64: (32, 80, 96, 144, 160, 224)}
    asserts = "\n".join(
        f"static_assert(sound<tl::SharedTile<tl::bf16, 16, {n}, {swizzle}>>());"
        for swizzle, widths in columns.items()
        for n in widths
    )
    source = f"""#include "memory.cuh"
template <class Tile>
constexpr bool sound() {{
  bool taken[16 * Tile::kPitch / 8] = {{}};
  for (int chunk = 0; chunk < Tile::kCols / 8; ++chunk)
    for (int first = 0; first < 16; first += 8) {{
      int banks = 0;  // one bit for each 16 of the 128 bytes that the banks hold
      for (int row = first; row < first + 8; ++row) {{
        int const at = Tile::offset(row, chunk) / 8;
        if (at >= 16 * Tile::kPitch / 8 || taken[at]) return false;
        taken[at] = true;
        banks |= 1 << at % 8;
      }}
      if (banks != 255) return false;
    }}
  return true;
}}
{asserts}
static_assert(!sound<tl::SharedTile<tl::bf16, 16, 128, 64>>(), "whole 128 bytes swizzled over 64 would collide");
extern "C" __global__ void nothing(float* x) {{ *x = 0; }}
"""
    report_of(source, "nothing", "sm_80", 32, 0, targets.get("A100"))


# ------------------------------------------------------------------ the source


def test_copies_and_stores_of_sm80_know_the_columns_that_exist() -> None:
    source = translated(planned("A100", 40)).source

    assert "tl::SharedTile<tl::bf16, 128, 48> const sQ" in source
    assert source.count("tl::copy_async_bounded<kThreads, D>(") == source.count("tl::copy_async_bounded<") == 4
    assert source.count("tl::store_tile<kThreads, D>(") == source.count("tl::store_tile<") == 1


def test_a_head_dim_of_whole_steps_asks_nothing_of_columns() -> None:
    source = translated(planned("A100", 96)).source

    assert "tl::SharedTile<tl::bf16, 128, 96, 64> const sQ" in source
    assert "kThreads, D>" not in source


@pytest.mark.parametrize(("dtype", "function"), [("bf16", "store_direct<D>"), ("f32", "store_float<D>")])
def test_results_that_leave_registers_end_with_the_head_dim(dtype: str, function: str) -> None:
    text = re.sub(r"    store O .*\n", "", planned("A100", 40))
    text = text.replace("Allocate Out in global (B, Sq, Hq, D) bf16", f"Allocate Out in global (B, Sq, Hq, D) {dtype}")

    assert f"tl::{function}(" in translated(text).source


def test_results_of_a_warpgroup_that_leave_registers_end_with_the_head_dim() -> None:
    text = re.sub(r"    stage O .*\n", "", planned("H200", 40))

    assert "tl::store_group_rows<D>(" in translated(text).source


@pytest.mark.parametrize(
    ("dims", "columns", "tile"),
    [((40, 40), (64, 64), "128, 48>"), ((96, 96), (32, 32), "96, 96, 64>"), ((192, 128), (64, 64), "128, 192>"),
     ((96, 32), (32, 32), "128, 96, 64>"), ((136, 72), (32, 32), "96, 144, 64>"), ((64, 32), (64, 32), "64>")],
    ids=str,
)  # fmt: skip
def test_boxes_of_the_copy_engine_are_a_panel_wide(dims: tuple[int, int], columns: tuple[int, int], tile: str) -> None:
    made = translated(planned("H200", *dims))

    boxes = {m["tensor"]: m["box"][-1] for m in made.facts["maps"]}

    assert (boxes["Q"], boxes["K"], boxes["V"]) == (columns[0], columns[0], columns[1])
    assert boxes.get("Out", columns[1]) == columns[1]
    assert re.search(rf"tl::PanelTile<tl::bf16, .*{tile} const sK", made.source)


REFUSED = {
    "rows of an unknown length": ("Size D = 40\n", "Size D\n"),
    "columns that begin elsewhere": ("head_k, d = 0]", "head_k, d = 8]"),
    "columns that end elsewhere": ("head_k, d = 0]", "head_k, d = 0 : 32]"),
    "columns that are no whole chunks": ("Size D = 40\n", "Size D = 36\n"),
    "a tile that ends within the row": ("Size D = 40\n", "Size D = 56\n"),
    "rows swizzled over 32 bytes": ("Let head_k", "Allocate K in shared (BN k, BD d) bf16 swizzle 32\nLet head_k"),
}


@pytest.mark.parametrize("target", ["A100", "H200"])
@pytest.mark.parametrize("change", REFUSED)
def test_other_columns_are_refused_by_name(change: str, target: str) -> None:
    old, new = REFUSED[change]
    text = planned(target, 40)
    assert old in text

    with pytest.raises(DiagnosticError) as caught:
        translated(text.replace(old, new))

    assert {d.code for d in caught.value.diagnostics} <= {"TL701", "TL301", "TL106", "TL105", "TL103"}
    assert all(d.hint for d in caught.value.diagnostics)


# ------------------------------------------------------------------ the cubin


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("dqk", "dv", "reloads"), [(32, 32, 0), (40, 40, 0), (96, 96, 0), (112, 112, 2), (192, 128, 0)], ids=str
)
def test_main_loops_for_sm80_write_nothing_to_local_memory(dqk: int, dv: int, reloads: int) -> None:
    """From 104 to 128 an address or two are kept there from before the loop; no element of a tile is."""
    made = translated(planned("A100", dqk, dv))

    report = report_of(made.source, made.name, "sm_80", made.threads, made.shared_bytes, made.target)

    (loop,) = report.main_loops
    assert loop.count("STL") == 0
    assert loop.count("LDL") <= reloads
    columns = int(re.search(r"BN = (\d+)", made.source)[1])
    steps = -(-dqk // 16) * columns + -(-dv // 16) * columns  # 32 rows a warp, MMAs of 16 x 8 x 16
    assert loop.count("HMMA") == 2 * steps // 8


@pytest.mark.cuda
@pytest.mark.parametrize(("dqk", "dv"), [(40, 40), (96, 96), (136, 136), (192, 128)], ids=str)
def test_kernels_of_roles_compute_on_no_more_than_a_step_of_padding_and_spill_nothing(dqk: int, dv: int) -> None:
    made = translated(planned("H200", dqk, dv))

    report = report_of(made.source, made.name, "sm_90a", made.threads, made.shared_bytes, made.target)

    assert report.count("LDL", "STL") == 0
    assert report.warnings == ()
    columns = int(re.search(r"BN = (\d+)", made.source)[1])
    assert {loop.count("HGMMA") for loop in report.main_loops} == {-(-dqk // 16) + columns // 16}
