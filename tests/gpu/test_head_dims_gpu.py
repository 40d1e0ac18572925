"""Head dims that are no multiple of 64 on a real GPU: kernels are generated here, for the GPU at hand, and run.

Programs for the A100 are built for the GPU's own architecture; those for the H200 need one of compute capability 9.0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qimeng_attention.errors import EnvironmentMissing
from qimeng_attention.judge import GPU, judge_bundle
from qimeng_attention.runtime import Bundle
from qimeng_attention.runtime.comparison import errors
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import generate

pytestmark = pytest.mark.gpu
GAP = 8  # columns, 16 bytes
TOLERANCE = {"fp16": 4e-3, "bf16": 3e-2}  # of outputs of unit size, rounded once from float32
LENGTHS = ((1, 1), (333, 401), (200, 77), (64, 1024))  # Sq, Sk
SHORT = replace(GPU, keys=4096, scores=1 << 26, thorough=False)
DIMS = [(d, d) for d in (32, 40, 72, 80, 96, 104, 136, 144, 192, 216, 248, 256)] + [(192, 128), (64, 128), (96, 32)]
CASES = [(t, *d, m, Hk) for t in ("A100", "H200") for d in DIMS for m, Hk in (("full", 4), ("causal", 2))]


def spec_of(case: tuple[str, int, int, str, int]) -> AttentionSpec:
    _, dqk, dv, mask, heads = case
    dtype = "fp16" if dqk in (40, 104, 192) else "bf16"
    return AttentionSpec.make(Hq=4, Hk=heads, Dqk=dqk, Dv=dv, mask=mask, dtype=dtype)


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(map(str, c)))
def made(request: pytest.FixtureRequest, torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A spec and its bundle."""
    target = request.param[0]
    major, minor = torch.cuda.get_device_capability()
    if major < 8 or (target == "H200" and (major, minor) != (9, 0)):
        pytest.skip(f"programs for the {target} do not run on compute capability {major}.{minor}")
    spec, arch = spec_of(request.param), None if target == "H200" else f"sm_{major}{minor}"
    try:
        bundle = generate(spec, target=target, arch=arch, out=tmp_path_factory.mktemp("made") / "bundle", judge=False)
    except EnvironmentMissing as missing:
        pytest.skip(f"needs the build extra: {missing.message}")
    return spec, bundle


def inputs(torch: Any, spec: AttentionSpec, sq: int, sk: int) -> list[Any]:
    generator = torch.Generator(device="cuda").manual_seed(sq)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[spec.dtype]
    shapes = ((2, sq, spec.Hq, spec.Dqk), (2, sk, spec.Hk, spec.Dqk), (2, sk, spec.Hk, spec.Dv))
    return [torch.randn(s, generator=generator, device="cuda").to(dtype) for s in shapes]


def test_outputs_are_right(torch: Any, made: tuple[AttentionSpec, Bundle]) -> None:
    spec, bundle = made
    for lengths in LENGTHS:
        tensors = inputs(torch, spec, *lengths)

        out = bundle(*tensors)

        torch.cuda.synchronize()
        worst, _ = errors(torch, out, tuple(tensors), spec.default_scale, causal=spec.mask == "causal")
        assert worst <= TOLERANCE[spec.dtype], lengths


def test_columns_behind_the_head_dim_are_neither_read_nor_written(
    torch: Any, made: tuple[AttentionSpec, Bundle]
) -> None:
    spec, bundle = made
    tensors = inputs(torch, spec, 333, 401)
    expected = bundle(*tensors)
    for beside in (torch.nan, torch.finfo(expected.dtype).max):
        wide = [torch.cat([t, torch.full_like(t[..., :GAP], beside)], dim=-1) for t in tensors]
        out = torch.full((*expected.shape[:-1], spec.Dv + GAP), 7.0, device="cuda").to(expected.dtype)

        bundle(*(w[..., :-GAP] for w in wide), out=out[..., :-GAP])

        assert torch.equal(out[..., :-GAP], expected)
        assert (out[..., -GAP:] == 7.0).all()


@pytest.mark.slow
def test_the_judge_accepts_the_kernel(made: tuple[AttentionSpec, Bundle]) -> None:
    spec, bundle = made

    verdict = judge_bundle(bundle.path, spec, seed=1, budget=SHORT)

    assert verdict.verdict == "accepted", verdict.reason
