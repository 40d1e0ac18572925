"""Operators on a real GPU: QIMENG_TEST_BUNDLES names a folder of bundles, as in test_runtime_gpu.py.

What an operator gives is compared, bit for bit, with what its bundle gives when it is called directly.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Bundle, evaluate, load
from qimeng_attention.runtime.launcher import runs_on

VARIABLE = "QIMENG_TEST_BUNDLES"
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # what a compiler warns of is not ours


def folders() -> list[Path]:
    root = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
    return sorted(path.parent for path in root.glob("*/manifest.json")) if root else []


@pytest.fixture(params=folders() or [None], ids=lambda path: path.name if path else "none")
def bundle(request: pytest.FixtureRequest, torch: Any) -> Bundle:
    if request.param is None:
        pytest.skip(f"needs bundles: set {VARIABLE} to a folder of them")
    found = load(request.param)
    if not found.manifest.call:
        pytest.skip(f"{found.manifest.kernel} is no operator of q, k and v")
    if not runs_on(found.manifest.built_arch, torch.cuda.get_device_capability()):
        pytest.skip(f"{found.manifest.kernel} is built for {found.manifest.built_arch}")
    torch._dynamo.reset()
    return found


def inputs(torch: Any, bundle: Bundle, *, seed: int = 0, **changed: int) -> list[Any]:
    manifest = bundle.manifest
    sizes = {name: {"B": 2, "Sq": 333, "Sk": 401}.get(name, 8) for name in manifest.sizes}
    sizes |= {r.left: r.right for r in manifest.requires if r.op == "==" and isinstance(r.right, int)} | changed
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[manifest.tensor(manifest.call["q"]).dtype]
    generator = torch.Generator(device="cuda").manual_seed(seed)
    shapes = [[evaluate(dim, sizes) for dim in manifest.tensor(manifest.call[name]).dims] for name in "qkv"]
    return [torch.randn(shape, generator=generator, device="cuda").to(dtype) for shape in shapes]


def has_lse(bundle: Bundle) -> bool:
    return len(bundle.manifest.outputs) > 1


def test_an_operator_gives_what_its_bundle_gives(torch: Any, bundle: Bundle) -> None:
    tensors, operator = inputs(torch, bundle), bundle.operator()

    assert torch.equal(operator(*tensors), bundle(*tensors))
    if bundle.manifest.scalars:
        assert torch.equal(operator(*tensors, scale=0.03), bundle(*tensors, scale=0.03))
    if has_lse(bundle):
        for ours, direct in zip(operator(*tensors, return_lse=True), bundle(*tensors, return_lse=True), strict=True):
            assert torch.equal(ours, direct)
            assert ours.stride() == direct.stride()


def test_opcheck_finds_nothing(torch: Any, bundle: Bundle) -> None:
    operator = bundle.operator()
    q, k, v = inputs(torch, bundle)
    swapped = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v)]

    for overload in (operator.plain, operator.with_lse):
        if overload is None:
            continue
        for tensors in ((q, k, v), tuple(swapped)):
            assert set(torch.library.opcheck(overload, tensors).values()) == {"SUCCESS"}


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_program_has_no_break_and_gives_the_same(torch: Any, bundle: Bundle, mode: str) -> None:
    operator = bundle.operator()
    # + 0: a compiled graph is more than one call
    step = torch.compile(lambda q, k, v: operator(q * 2, k, v) + 0, fullgraph=True, mode=mode)

    for seed in range(4):  # graphs are recorded by the second call
        q, k, v = inputs(torch, bundle, seed=seed)
        found = step(q, k, v).clone()
        assert torch.equal(found, bundle(q * 2, k, v))


def test_a_compiled_program_takes_any_lengths(torch: Any, bundle: Bundle) -> None:
    if not {"Sq", "Sk"} <= set(bundle.manifest.sizes):
        pytest.skip("the lengths are fixed")
    operator = bundle.operator()
    step = torch.compile(lambda q, k, v: operator(q, k, v) + 0, fullgraph=True, dynamic=True)

    for lengths in ((333, 401), (64, 64), (1, 700)):
        tensors = inputs(torch, bundle, Sq=lengths[0], Sk=lengths[1])
        assert torch.equal(step(*tensors), bundle(*tensors))


def test_a_compiled_program_keeps_strides(torch: Any, bundle: Bundle) -> None:
    operator = bundle.operator()
    step = torch.compile(lambda *t: operator(*(x.transpose(1, 2) for x in t)), fullgraph=True)
    tensors = inputs(torch, bundle)

    found = step(*(tensor.transpose(1, 2).contiguous() for tensor in tensors))

    assert torch.equal(found, bundle(*tensors))
    assert found.is_contiguous()


def test_a_captured_operator_replays_on_new_values(torch: Any, bundle: Bundle) -> None:
    tensors, others, operator = inputs(torch, bundle), inputs(torch, bundle, seed=1), bundle.operator()
    operator(*tensors)
    expected = operator(*others)
    graph = torch.cuda.CUDAGraph()

    with torch.cuda.graph(graph):
        out = operator(*tensors)
    for to, tensor in zip(tensors, others, strict=True):
        to.copy_(tensor)
    graph.replay()
    torch.cuda.synchronize()

    assert torch.equal(out, expected)


def test_wrong_calls_keep_the_launch_s_errors(torch: Any, bundle: Bundle) -> None:
    operator = bundle.operator()
    q, k, v = inputs(torch, bundle)

    for words, tensors in (
        ("is on cpu", (q.cpu(), k, v)),
        ("is on cpu", (q, k, v.cpu())),
        ("the kernel takes torch", (q.float(), k, v)),
        ("dimensions", (q[0], k, v)),
        ("last stride", (q, k, v.transpose(1, 3).contiguous().transpose(1, 3))),
        ("q requires grad", (q.clone().requires_grad_(), k, v)),
    ):
        with pytest.raises(LaunchError, match=words):
            operator(*tensors)

    assert torch.equal(operator(q, k, v), bundle(q, k, v))


def test_under_no_grad_a_parameter_may_be_passed(torch: Any, bundle: Bundle) -> None:
    operator = bundle.operator()
    q, k, v = inputs(torch, bundle)
    q.requires_grad_()

    with torch.no_grad():
        assert torch.equal(operator(q, k, v), operator(q.detach(), k, v))
