"""Programs of roles to CuTe C++ for sm_90a: what stands in the TL stands in the source, and nothing else is decided."""

from __future__ import annotations

import re

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.build import Cache, _require_overlap, build, find_toolchain
from qimeng_attention.errors import BuildError, DiagnosticError, EnvironmentMissing
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.translate import Translation, translate
from tl.fuzzing import PROGRAMS

SCHEDULED = (PROGRAMS / "gqa_h200_scheduled.tl").read_text("utf-8")


def planned(**fields: object) -> str:
    return plan(AttentionSpec.make(**{"Hq": 4, "Hk": 2, "mask": "causal", **fields}), targets.get("H200")).code


def translated(code: str) -> Translation:
    (made,) = translate(schedule(parse(code)))
    return made


def built(made: Translation, arch: str = "sm_90a"):
    try:
        tools = find_toolchain()
    except EnvironmentMissing as missing:
        pytest.skip(f"needs the build extra: {missing.message}")
    return build(
        made.source,
        name=made.name,
        arch=arch,
        threads=made.threads,
        shared_bytes=made.shared_bytes,
        target=made.target,
        cache=Cache.disabled(),
        toolchain=tools,
    )


def edited(*changes: tuple[str, str]) -> str:
    text = SCHEDULED
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


# ------------------------------------------------------------------ the source


def test_the_scheduled_design_program_is_what_it_was(golden) -> None:
    (made,) = translate(parse(SCHEDULED))

    golden("gqa_h200_scheduled.cu", made.source)


def test_each_statement_of_a_role_is_marked_and_in_order() -> None:
    (made,) = translate(parse(SCHEDULED))
    lines = [int(n) for n in re.findall(r"// tl:(\d+) ", made.source)]

    assert lines == sorted(lines)
    assert made.source.count(".wait_full(") == SCHEDULED.count(".full\n") - SCHEDULED.count("signals")


def test_facts_name_the_maps_and_the_counter() -> None:
    made = translated(planned(Dqk=128))

    assert made.facts["maps"] == [
        {"tensor": "Q", "box": [1, 128, 1, 64], "dimension": 0, "group": 0},
        {"tensor": "K", "box": [1, 128, 1, 64], "dimension": 0, "group": 0},
        {"tensor": "V", "box": [1, 128, 1, 64], "dimension": 0, "group": 0},
        {"tensor": "Out", "box": [1, 64, 1, 64], "dimension": 0, "group": 0},
    ]
    assert made.facts["persistent"]
    assert made.facts["counter"]
    assert "int* __restrict__ const tile_counter" in made.source
    assert made.threads == 384


def test_tiles_dealt_in_rounds_need_no_counter() -> None:
    made = translated(planned(Dqk=128, mask="full"))

    assert not made.facts["counter"]
    assert "tile_counter" not in made.source


def test_stages_of_a_ring_follow_from_its_uses() -> None:
    source = translated(planned(Dqk=128)).source

    assert "tl::Ring<2> const K_ring" in source
    assert "tl::stage(sK, K_ring.slot(K_uses))" in source
    assert "K_ring.release(K_uses++);" in source


def test_a_wait_stands_behind_the_row_values_that_come_first() -> None:
    """ptxas would move it up, and nothing would be computed beside the product."""
    code = planned(Dqk=128)
    later = code.replace("with the exponentials of this one", "with the row statistics of this one")
    early, late = (translated(c).source for c in (code, later))

    assert early.count("tl::wait_gemm_behind<0>(rm(rm.kR - 1));") == 2
    assert late.count("tl::wait_gemm_behind<0>(rl_lane(rl_lane.kR - 1));") == 2


def test_heads_of_a_group_are_the_rows_of_a_tile_that_ends_with_them() -> None:
    """The copy engine sees the heads as groups: a tile's rows beyond its group are zeros."""
    split, combine = translate(schedule(parse(planned(Hq=16, Hk=2, Sq=1, Dqk=128))))

    assert (
        "tl::load_tile(tl::stage(sQ, Q_ring.slot(Q_uses)), mQ_1x1x64x64_by_8, Q_ring.full(Q_uses), 0, group, t, batch)"
        in (split.source)
    )
    assert {"tensor": "Q", "box": [1, 1, 64, 64], "dimension": 2, "group": 8} in split.facts["maps"]
    assert "tl::store_group_float(" in split.source
    assert "#pragma unroll 8" in combine.source
    assert "tl::load_float(" in combine.source
    assert split.facts["chosen"]["Splits"][0] == "clamp"


def test_a_tile_that_ends_elsewhere_is_refused() -> None:
    code = planned(Hq=16, Hk=2, Sq=1, Dqk=128).replace("(group + 1) * G] from global", "group * G + 3] from global")

    with pytest.raises(DiagnosticError, match="groups of rows") as caught:
        translate(schedule(parse(code)))
    assert caught.value.diagnostics[0].code == "TL701"


def test_a_wait_with_nothing_before_it_is_plain() -> None:
    source = translated(planned(Dqk=128)).source

    assert source.count("tl::wait_gemm<1>();") == 2
    assert source.count("tl::wait_gemm<0>();") == 2  # of the first tile's S, and of the last P V


def test_a_block_waits_for_the_gemms_it_starts() -> None:
    gemm = "            Compute GEMM P, V at [k = (last - 1) * BN] and accumulate O async\n"
    result = "        Compute where(l == 0, 0, O / l) and get new O\n"
    late = "        Wait gemm pending 0\n        if first < last\n            Release V\n"
    text = edited((f"{gemm}            Wait gemm pending 0\n            Release V\n", gemm), (result, late + result))

    with pytest.raises(DiagnosticError) as caught:
        translate(parse(text))

    (found,) = caught.value.diagnostics
    assert found.code == "TL701"
    assert "waited for outside" in found.message


def test_a_gpu_without_roles_refuses_them_by_name() -> None:
    with pytest.raises(DiagnosticError) as caught:
        translate(parse(SCHEDULED.replace("for h200", "for a100")))

    assert {d.code for d in caught.value.diagnostics} <= {"TL504", "TL501", "TL701"}


# ------------------------------------------------------------------ the cubin

SHIPPED = [
    {"Dqk": 64, "mask": "causal"},
    {"Dqk": 128, "mask": "causal"},
    {"Dqk": 128, "mask": "full", "dtype": "fp16"},
    {"Dqk": 128, "mask": "window:100"},
    {"Dqk": 128, "mask": "causal", "softcap": 30.0},
    {"Dqk": 256, "mask": "full"},
]


@pytest.mark.cuda
@pytest.mark.parametrize("fields", SHIPPED, ids=lambda f: "-".join(str(v) for v in f.values()))
def test_shipped_kernels_use_wgmma_and_the_copy_engine_and_spill_nothing(fields: dict[str, object]) -> None:
    report = built(translated(planned(**fields))).report

    assert report.count("HGMMA") > 0
    assert report.count("UTMALDG") > 0
    assert report.count("HMMA") == 0
    assert report.count("LDL", "STL") == 0
    assert report.spill_store_bytes == 0
    assert report.warnings == ()


@pytest.mark.cuda
def test_another_architecture_is_refused_before_the_compiler_sees_it() -> None:
    with pytest.raises(BuildError, match="has instructions of sm_90a alone"):
        built(translated(planned(Dqk=128)), "sm_90")


def test_products_that_ptxas_runs_one_after_the_other_fail_the_build() -> None:
    warning = "Potential Performance Loss: wgmma.mma_async instructions are serialized due to a branch"

    with pytest.raises(BuildError, match="one after the other"):
        _require_overlap((warning,), "")
    _require_overlap(("another warning",), "")


@pytest.mark.cuda
def test_the_same_program_compiles_for_an_a100() -> None:
    """Only tiles and schedule differ between the generations."""
    spec = AttentionSpec.make(Hq=4, Hk=2, mask="causal", Dqk=128)
    texts = [print_program(parse(plan(spec, targets.get(name)).code)) for name in ("A100", "H200")]

    def body(text: str) -> list[str]:
        head = text.split("Schedule")[0].splitlines()
        return [line for line in head if not line.startswith(("Tile ", "Kernel "))]

    assert body(texts[0]) == body(texts[1])
    assert built(translated(texts[0]), "sm_80").report.count("HMMA") > 0
