"""The GPU that is present: its row, or one made from its properties; a typed error where there is none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import EnvironmentMissing
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.parser import parse
from qimeng_attention.translate import translate
from qimeng_attention.workflow import find_target, present


@pytest.fixture(autouse=True)
def _nothing_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_learnt", {})


def properties(**changes: int) -> SimpleNamespace:
    """What a driver says of an RTX 2080 Ti."""
    known = {
        "multiprocessor_count": 68,
        "l2_cache_size": 5_767_168,
        "clock_rate": 1_545_000,
        "memory_clock_rate": 7_000_000,
        "global_memory_bus_width": 352,
        "max_shared_memory_per_multiprocessor": 65_536,
        "max_shared_memory_per_block_optin": 65_536,
        "reserved_shared_memory_per_block": 0,
        "max_registers_per_multiprocessor": 65_536,
        "max_threads_per_multiprocessor": 1024,
        "max_threads_per_block": 1024,
        "max_blocks_per_multiprocessor": 16,
    }
    return SimpleNamespace(**{**known, **changes})


@pytest.mark.parametrize("name", targets.names())
def test_a_known_gpu_gets_its_row(name: str) -> None:
    row = targets.get(name)
    capability = divmod(int(row.arch.removeprefix("sm_").rstrip("a")), 10)
    spelt = name.replace("RTX", "GeForce RTX ")

    assert present.target_of(f"NVIDIA {spelt}", capability, properties(multiprocessor_count=row.sms)) is row


@pytest.mark.parametrize(
    ("name", "sms", "expected"),
    [("Tesla T4", 40, "T4"), ("Quadro RTX 8000", 72, "RTX8000"), ("NVIDIA T400 4GB", 6, "T4004GB")],
)
def test_a_row_is_found_by_whole_words(name: str, sms: int, expected: str) -> None:
    assert present.target_of(name, (7, 5), properties(multiprocessor_count=sms)).name == expected


def test_an_unknown_gpu_of_a_known_generation_gets_a_row_of_its_own() -> None:
    made = present.target_of("NVIDIA GeForce RTX 2080 Ti", (7, 5), properties())

    assert (made.name, made.arch, made.sms, made.clock_mhz) == ("RTX2080Ti", "sm_75", 68, 1545)
    assert made.bandwidth_bytes_per_s == pytest.approx(616e9)
    assert made.tensor_tflops["fp16"] == pytest.approx(68 * made.tensor_flops_per_clock * 1545e6 / 1e12)
    assert made.capabilities == targets.get("T4").capabilities
    assert targets.get("rtx2080ti") is made
    assert "RTX2080Ti" not in targets.names()
    assert "predictions" in made.sources["gpu"]
    assert "T4's" in made.sources["gpu"]


def test_its_own_limits_are_kept() -> None:
    made = present.target_of(
        "NVIDIA RTX A2000",
        (8, 6),
        properties(max_shared_memory_per_block_optin=50_000, max_threads_per_multiprocessor=512),
    )

    assert (made.shared_per_block_bytes, made.max_threads_per_sm) == (50_000, 512)
    assert set(made.dtypes) == {"fp16", "bf16"}


def test_a_gpu_of_a_known_name_with_other_sms_is_another_gpu() -> None:
    made = present.target_of("NVIDIA GeForce RTX 4090", (8, 9), properties(multiprocessor_count=114))

    assert made.name == "RTX4090x114"
    assert made.tensor_tflops["fp8"] == pytest.approx(2 * made.tensor_tflops["fp16"], rel=0.01)


def test_where_the_driver_tells_no_clock_the_sisters_is_taken() -> None:
    made = present.target_of("RTX 2070", (7, 5), properties(clock_rate=0, memory_clock_rate=0))

    assert made.clock_mhz == targets.get("T4").clock_mhz
    assert made.bandwidth_bytes_per_s == targets.get("T4").bandwidth_bytes_per_s


def test_a_generation_that_nobody_knows_is_refused() -> None:
    with pytest.raises(EnvironmentMissing, match=r"Tesla V100 \(sm_70\) is of no known generation"):
        present.target_of("Tesla V100", (7, 0), properties())


def test_auto_plans_and_translates_for_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(present, "_first_device", lambda: ("NVIDIA GeForce RTX 2080 Ti", (7, 5), properties()))
    target, arch = find_target("auto")

    (made,) = translate(schedule(parse(plan(AttentionSpec.make(Hq=4, dtype="fp16"), target).code)))

    assert arch == "sm_75"
    assert made.target is target
    assert "for rtx2080ti" in made.scheduled


def test_auto_without_a_gpu_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(present, "_first_device", nothing)
    with pytest.raises(EnvironmentMissing, match="no NVIDIA GPU was found") as caught:
        find_target("auto")

    assert caught.value.hint == "name a target: `--target A100`"


def test_a_name_of_the_table_cannot_be_learnt_anew() -> None:
    with pytest.raises(ValueError, match="T4 is in the table"):
        targets.learn("T4", arch="sm_75", source="nobody")
