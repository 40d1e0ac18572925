"""The compiler for sm_80's instructions: what it emits, what it refuses, and that the TL is the only source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.build import Cache, build
from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.functions import FUNCTIONS
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.statements import TABLE
from qimeng_attention.translate import Translation, sm80, translate
from qimeng_attention.translate.sm80 import context

PROGRAMS = Path(__file__).parents[2] / "docs" / "design" / "programs"
OF_OTHER_GENERATIONS = {"role", "Release", "Pass", "Fence", "Apply"}  # Apply is written out before


def _translated(text: str) -> Translation:
    return translate(schedule(parse(text)))[0]


def _planned(**fields: object) -> str:
    return plan(AttentionSpec.make(**fields), targets.get("A100")).code


def test_each_statement_has_a_lowering_or_is_refused_by_name() -> None:
    assert {rule.name for rule in TABLE.values()} == set(sm80.LOWERINGS) | OF_OTHER_GENERATIONS


def test_each_function_has_a_lowering() -> None:
    assert set(context.FUNCTIONS) == set(FUNCTIONS)


def test_causal_gqa_is_the_kernel_a_person_reviewed(golden) -> None:
    golden("gqa_causal.cu", _translated((PROGRAMS / "gqa_causal.tl").read_text()).source)


def test_each_mark_names_the_line_it_comes_from() -> None:
    made = _translated((PROGRAMS / "gqa_causal.tl").read_text())
    lines = made.scheduled.splitlines()

    marks = re.findall(r"// tl:(\d+) (.*)", made.source)

    assert len(marks) > 40
    for number, text in marks:
        assert lines[int(number) - 1].split("  #")[0].strip().startswith(text.removesuffix("...").strip())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("BN = 64", "BN = 32"),
        ("prefetch K 1 ahead", "prefetch K 0 ahead"),
        ("k <= q + Sk - Sq and", "k < q + Sk - Sq and"),
        ("scale * log2e", "scale"),
        ("ring K stages 1, V stages 1", "ring K stages 2, V stages 2"),
        ("    store O through shared over Q", "    # store O directly"),
    ],
    ids=lambda text: text.strip()[:30],
)
def test_a_change_of_the_program_changes_the_kernel(old: str, new: str) -> None:
    text = (PROGRAMS / "gqa_causal.tl").read_text()
    assert old in text

    before, after = _translated(text), _translated(text.replace(old, new))

    assert _code(before.source) != _code(after.source)


def _code(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.strip().startswith("//"))


def test_facts_name_every_argument_in_order() -> None:
    made = _translated((PROGRAMS / "gqa_causal.tl").read_text())

    assert [t["name"] for t in made.facts["tensors"]] == ["Q", "K", "V", "Out", "Lse"]
    assert made.facts["sizes"] == ["B", "Sq", "Sk", "Hq", "Hk"]
    assert made.facts["scalars"] == [{"name": "scale", "dtype": "f32", "op": ">", "bound": 0.0}]
    assert [g["name"] for g in made.facts["grid"]] == ["head", "block", "batch"]
    assert made.facts["grid"][1]["stop"] == ["ceildiv", "Sq", 128]


@pytest.mark.parametrize(
    "name",
    [
        "mla_decode",
        "stick_breaking",
        "linear",
        "fp8",
    ],
)
def test_what_no_lowering_covers_is_refused_by_name(name: str) -> None:
    program = parse((PROGRAMS / f"{name}.tl").read_text())

    with pytest.raises(DiagnosticError) as caught:
        translate(schedule(program))

    codes = {d.code for d in caught.value.diagnostics}
    assert codes <= {"TL601", "TL603", "TL701"}, [d.render() for d in caught.value.diagnostics]
    assert all(d.hint and d.message for d in caught.value.diagnostics)


@pytest.mark.parametrize(
    "name",
    [
        "sigmoid",
        "differential",
        "paged_gather",
        "nsa_selected",
        "block_list",
        "window_and_sinks",
        "sink",
        "alibi",
        "softcap",
        "paged",
        "varlen",
    ],
)
def test_operators_that_no_one_foresaw_are_translated(name: str) -> None:
    assert translate(schedule(parse((PROGRAMS / f"{name}.tl").read_text())))[0].source.count("tl::gemm_") >= 2


def test_code_without_a_schedule_is_refused() -> None:
    with pytest.raises(DiagnosticError) as caught:
        translate(parse((PROGRAMS / "gqa_causal.tl").read_text()))

    assert caught.value.diagnostics[0].code == "TL701"


def test_a_target_without_the_instructions_is_refused() -> None:
    with pytest.raises(DiagnosticError) as caught:
        translate(parse(_planned(mask="full").replace("for a100", "for t4")))

    assert {d.code for d in caught.value.diagnostics} & {"TL504", "TL501", "TL701"}


@pytest.mark.parametrize(("target", "roles"), [("a100", False), ("h100", True)])
def test_a_program_that_no_line_divides_is_told_which_line_would(target: str, roles: bool) -> None:
    text = re.sub(r"    warps .*\n", "", _planned(mask="full", Hq=8)).replace("for a100", f"for {target}")

    with pytest.raises(DiagnosticError) as caught:
        _translated(text)

    (found,) = caught.value.diagnostics
    assert found.code == "TL701"
    assert found.message.endswith("run along q, which no line of the Schedule divides")
    assert "`warps 4 along q`" in found.hint
    assert ("roles producer" in found.hint) == roles


READ_GATE = "    Copy Gate (BN) in coordinate [batch, k = i * BN, head] from global to "


def _gated(read: str) -> str:
    """Write a program whose weights are multiplied by R, a vector over the keys that some lines read."""
    weights = "    Compute where(k < Sk, S * sigmoid(R), 0) and get new S\n"
    return (
        _planned(mask="full", Hq=8)
        .replace("Allocate Out in global", "Allocate Gate in global (B, Sk, Hq) f32\nAllocate Out in global")
        .replace("    Reshape S", f"{read}{weights}    Reshape S")
    )


def test_a_vector_in_shared_memory_is_told_to_lie_in_registers() -> None:
    with pytest.raises(DiagnosticError) as caught:
        _translated(_gated(f"{READ_GATE}shared\n    Copy Gate from shared to register R\n"))

    (found,) = caught.value.diagnostics
    assert found.message == "the vector Gate (64 k) f32 lies in shared memory, where only tiles of rows do"
    assert "`Allocate R in register (64 k) f32`, `Copy ... from global to register R`" in found.hint
    hinted = _gated(f"    Allocate R in register (64 k) f32\n{READ_GATE}register R\n")
    assert "tl::load_columns" in _translated(hinted).source


@pytest.mark.cuda
def test_a_vector_over_the_keys_may_have_a_first_value(tmp_path: Path) -> None:
    text = _gated(f"{READ_GATE}register R\n")
    made = _translated(text.replace("\nfor i", "\nAllocate R in register (64 k) f32 = 0\nfor i"))

    assert "rR.fill(0.0f);" in made.source
    arguments = {"arch": "sm_80", "threads": 128, "shared_bytes": 65536, "target": targets.get("A100")}
    assert build(made.source, name="mha_full_d128_bf16", cache=Cache.open(tmp_path / "cache"), **arguments).cubin


def test_two_ranges_become_one_loop_over_steps() -> None:
    text = _planned(mask="full", Hq=8).replace("for i = 0 : ceildiv(Sk, BN)", "for i = 0 : 1, 1 : ceildiv(Sk, BN)")
    text = re.sub(r"    (ring|prefetch|guard).*\n", "", text)

    source = _translated(text).source

    assert "i_step" in source
    assert source.count("tl::gemm_shared") == 1


def test_a_coordinate_that_may_be_negative_is_guarded() -> None:
    text = _planned(mask="full", Hq=8).replace(
        "k = i * BN, head] from global to shared", "k = i * BN - 5, head] from global to shared"
    )
    text = re.sub(r"    (ring|prefetch|guard).*\n", "", text).replace("k < Sk", "k < Sk and k >= 0")
    text = text.replace("ceildiv(Sk, BN)", "ceildiv(Sk + 5, BN)")

    assert "copy_async_between" in _translated(text).source


@pytest.mark.parametrize(
    "fields",
    [
        {"mask": "window:300", "dtype": "fp16"},
        {"mask": "causal", "softcap": 30.0, "Hk": 1},
        {"mask": "causal", "score": "score - exp2(-8 * (h + 1) / Hq) * (q_idx + Sk - Sq - kv_idx)"},
        {"mask": "kv_idx < 2048 or kv_idx <= q_idx + Sk - Sq"},
        {"mask": "causal", "Dqk": 192, "Dv": 128},
        {"mask": "causal", "Dqk": 256, "B": 2, "Sq": 1000, "Sk": 1000, "outputs": ["O"]},
        {"mask": "full", "scale_sign": "any", "Dqk": 64},
        {"mask": "(q_idx + Sk - Sq) // 64 >= kv_idx // 64", "Dqk": 64},
    ],
    ids=lambda f: ",".join(f"{k}={v}" for k, v in f.items())[:60],
)
def test_every_mask_and_score_is_translated(fields: dict[str, object]) -> None:
    made = _translated(_planned(Hq=16, **fields))

    assert made.source.count("{") == made.source.count("}")
    assert made.shared_bytes <= 163 * 1024
