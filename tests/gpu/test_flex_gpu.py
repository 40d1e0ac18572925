"""FlexAttention's callables on a real GPU: a kernel made of them beside a reference that evaluates them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qimeng_attention.errors import EnvironmentMissing
from qimeng_attention.runtime.launcher import runs_on
from qimeng_attention.workflow import generate

pytestmark = pytest.mark.gpu
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def torch(torch: Any) -> Any:
    if not runs_on("sm_90a", torch.cuda.get_device_capability()):
        pytest.skip("needs an NVIDIA GPU of sm_90")
    return torch


@pytest.fixture(scope="module")
def flex_speed(torch: Any) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("flex_speed")


@pytest.mark.parametrize("name", ["documents_window", "t5_bias", "modalities", "images"])
def test_a_kernel_made_of_callables_computes_what_they_say(
    torch: Any, flex_speed: ModuleType, tmp_path: Path, name: str
) -> None:
    usual = flex_speed.Sizes(B=2, H=4, Sq=1024, Sk=1024)
    given = flex_speed.accepted(usual, "cuda")[name]
    operator = flex_speed.traced(name, given, usual)
    sizes, places = given.sizes(usual), [(0, 0), (1, 3)]
    try:
        generate(operator.spec, target="H200", out=tmp_path / name, judge=False)
    except EnvironmentMissing as missing:
        pytest.skip(f"needs the build extra: {missing.message}")
    inputs = flex_speed.Inputs.of(sizes, "cuda")

    out = flex_speed.our_call(tmp_path / name, operator, inputs)()

    assert flex_speed.error(out, flex_speed.reference(given, inputs, places), places) < flex_speed.MOST_ERROR
