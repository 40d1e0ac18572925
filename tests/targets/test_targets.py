"""The table of GPUs: complete, consistent with itself, and refusing by name."""

from __future__ import annotations

import dataclasses

import pytest

from qimeng_attention import targets
from qimeng_attention.errors import SpecError

ALL = [targets.get(name) for name in targets.names()]
by_name = pytest.mark.parametrize("target", ALL, ids=lambda t: t.name)


def test_the_ten_gpus_are_there() -> None:
    assert targets.names() == [
        "T4",
        "RTX8000",
        "A100",
        "RTX3090",
        "L40S",
        "RTX4090",
        "H100",
        "H200",
        "B200",
        "RTX5090",
    ]


@pytest.mark.parametrize("spelling", ["h200", "H200", "rtx4090"])
def test_names_are_found_whatever_their_case(spelling: str) -> None:
    assert targets.get(spelling).name == spelling.upper()


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SpecError, match="unknown target 'a10'") as caught:
        targets.get("a10")

    assert caught.value.details == {
        "field": "target",
        "value": "a10",
        "allowed": targets.names(),
        "nearest": "A100",
    }
    assert caught.value.hint == "did you mean A100?"


def test_a_name_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(SpecError) as caught:
        targets.get("zzz")

    assert caught.value.details["nearest"] is None
    assert "H200" in caught.value.hint


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("sm_80", ["A100"]),
        ("sm_90", ["H100", "H200"]),
        ("sm_90a", ["H100", "H200"]),
        ("sm_120a", ["RTX5090"]),
    ],
)
def test_an_architecture_gives_its_gpus(arch: str, expected: list[str]) -> None:
    assert [t.name for t in targets.for_arch(arch)] == expected


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown arch 'sm_70'"):
        targets.for_arch("sm_70")


@pytest.mark.parametrize(
    ("name", "per_sm", "per_block"),
    [
        ("T4", 65_536, 65_536),
        ("A100", 167_936, 166_912),
        ("L40S", 102_400, 101_376),
        ("RTX4090", 102_400, 101_376),
        ("H200", 233_472, 232_448),
        ("RTX5090", 102_400, 101_376),
    ],
)
def test_shared_memory_is_that_of_the_programming_guide(name: str, per_sm: int, per_block: int) -> None:
    target = targets.get(name)

    assert (target.shared_per_sm_bytes, target.shared_per_block_bytes) == (per_sm, per_block)
    assert target.shared_per_block_bytes + target.shared_reserved_bytes == per_sm


@by_name
def test_peak_rates_agree_with_clock_and_pipes(target: targets.Target) -> None:
    from_pipes = target.sms * target.tensor_flops_per_clock * target.clock_mhz * 1e6 / 1e12

    assert from_pipes == pytest.approx(target.tensor_tflops["fp16"], rel=0.01)


@by_name
def test_fp8_runs_at_twice_the_rate(target: targets.Target) -> None:
    if "fp8" in target.dtypes:
        assert target.tensor_tflops["fp8"] == pytest.approx(2 * target.tensor_tflops["bf16"], rel=0.001)


@by_name
def test_every_group_of_facts_names_its_source(target: targets.Target) -> None:
    assert set(target.sources) == {"gpu", "generation", "every", "capabilities"}
    assert all(len(source) > 10 for source in target.sources.values())


@by_name
def test_numbers_are_positive_and_of_their_kind(target: targets.Target) -> None:
    for field in dataclasses.fields(target):
        value = getattr(target, field.name)
        if isinstance(value, int | float):
            assert value > 0 or field.name == "shared_reserved_bytes", field.name


@by_name
def test_capabilities_are_known_names_and_agree_with_the_types(target: targets.Target) -> None:
    assert target.capabilities <= set(targets.capabilities())
    assert set(target.dtypes) == target.capabilities & {"fp16", "bf16", "fp8"}


def test_capabilities_follow_the_generations() -> None:
    having = {name: {t.name for t in ALL if t.has(name)} for name in targets.capabilities()}
    turing = {"T4", "RTX8000"}
    everything = set(targets.names())

    assert having["async copy"] == having["mma m16n8k16"] == having["bf16"] == everything - turing
    assert having["wgmma"] == {"H100", "H200"}
    assert having["tma"] == having["mbarrier"] == having["setmaxnreg"] == {"H100", "H200", "B200", "RTX5090"}
    assert having["cluster"] == {"H100", "H200", "B200"}
    assert having["fp8"] == everything - turing - {"A100", "RTX3090"}
    assert having["ldmatrix"] == having["mma m16n8k8"] == having["fp16"] == everything


def test_a_missing_capability_is_refused_by_name_with_the_gpus_that_have_it() -> None:
    with pytest.raises(SpecError, match=r"T4 \(sm_75\) has no async copy") as caught:
        targets.get("T4").requires("async copy")

    assert "A100" in caught.value.hint
    targets.get("A100").requires("async copy")


def test_a_capability_that_nobody_knows_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown capability 'wgma'") as caught:
        targets.get("H200").has("wgma")

    assert caught.value.hint == "did you mean wgmma?"


def test_a_target_cannot_be_changed() -> None:
    target = targets.get("A100")

    with pytest.raises(dataclasses.FrozenInstanceError):
        target.sms = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        target.tensor_tflops["fp16"] = 1.0  # type: ignore[index]
