"""Bundles on a real GPU: QIMENG_TEST_BUNDLES names a folder of bundles, which other stages have made.

The references are plain PyTorch in float64; only bundles of full and causal attention are compared with them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Bundle, load
from qimeng_attention.runtime.comparison import errors, plain_mask
from qimeng_attention.runtime.launcher import Launcher, runs_on
from qimeng_attention.runtime.manifest import CALL

VARIABLE = "QIMENG_TEST_BUNDLES"
GAP = 8  # columns, 16 bytes
TOLERANCE = {"fp16": 4e-3, "bf16": 3e-2}  # of outputs of unit size, rounded once from float32
pytestmark = pytest.mark.gpu


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
    if len(found.manifest.call) > len(CALL):
        pytest.skip(f"{found.manifest.kernel} takes named tensors: see test_named_tensors_gpu.py")
    if not runs_on(found.manifest.built_arch, torch.cuda.get_device_capability()):
        pytest.skip(f"{found.manifest.kernel} is built for {found.manifest.built_arch}")
    return found


def shape(bundle: Bundle, name: str, **sizes: int) -> list[int]:
    from qimeng_attention.runtime import evaluate

    return [evaluate(dim, sizes) for dim in bundle.manifest.tensor(bundle.manifest.call[name]).dims]


def dtype_of(bundle: Bundle) -> str:
    return bundle.manifest.tensor(bundle.manifest.call["q"]).dtype


def inputs(torch: Any, bundle: Bundle, *, seed: int = 0, **changed: int) -> list[Any]:
    sizes = {name: {"B": 2, "Sq": 333, "Sk": 401}.get(name, 8) for name in bundle.manifest.sizes}
    sizes |= {r.left: r.right for r in bundle.manifest.requires if r.op == "==" and isinstance(r.right, int)} | changed
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype_of(bundle)]
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return [torch.randn(shape(bundle, name, **sizes), generator=generator, device="cuda").to(dtype) for name in "qkv"]


def assert_right(torch: Any, bundle: Bundle, out: Any, tensors: list[Any], scale: float | None = None) -> None:
    torch.cuda.synchronize()
    mask = plain_mask(bundle.files["spec.json"])
    if mask is None:
        assert not out.isnan().any()
        return
    chosen = bundle.manifest.default_scale if scale is None else scale
    q, k, v = tensors
    worst, _ = errors(torch, out, (q, k, v), chosen, causal=mask == "causal")
    assert worst <= TOLERANCE[dtype_of(bundle)]


def test_a_call_is_right(torch: Any, bundle: Bundle) -> None:
    tensors = inputs(torch, bundle)

    out = bundle(*tensors)

    assert out.is_contiguous()
    assert_right(torch, bundle, out, tensors)


def test_each_call_has_its_own_scale(torch: Any, bundle: Bundle) -> None:
    if not bundle.manifest.scalars:
        pytest.skip("the kernel takes no scale")
    tensors = inputs(torch, bundle)

    for scale in (0.01, 0.25):
        assert_right(torch, bundle, bundle(*tensors, scale=scale), tensors, scale)


def test_lse_is_the_logarithm_of_the_sums(torch: Any, bundle: Bundle) -> None:
    if len(bundle.manifest.outputs) < 2 or plain_mask(bundle.files["spec.json"]) != "full":
        pytest.skip("needs an LSE and a full mask")
    q, k, v = inputs(torch, bundle)

    _, lse = bundle(q, k, v, return_lse=True)

    keys = k.double().repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), keys) * bundle.manifest.default_scale
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-3, atol=1e-3)


def test_given_outputs_are_filled(torch: Any, bundle: Bundle) -> None:
    tensors = inputs(torch, bundle)
    expected = bundle(*tensors)
    out = torch.full_like(expected, torch.nan)

    assert bundle(*tensors, out=out) is out
    assert torch.equal(out, expected)


def test_another_stream_is_used_and_kept_in_order(torch: Any, bundle: Bundle) -> None:
    tensors = inputs(torch, bundle)
    expected = bundle(*tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    with torch.cuda.stream(stream):
        late = [torch.zeros_like(tensor) for tensor in tensors]
        bundle(*late)
        torch.cuda._sleep(100_000_000)  # cycles: the copies below are late
        for to, tensor in zip(late, tensors, strict=True):
            to.copy_(tensor)
        out = bundle(*late)
        busy = not stream.query()
    stream.synchronize()

    assert busy, "the call waited for the GPU"
    assert torch.equal(out, expected)


def test_a_captured_graph_replays_on_new_values(torch: Any, bundle: Bundle) -> None:
    tensors, others = inputs(torch, bundle), inputs(torch, bundle, seed=1)
    bundle(*tensors)
    expected = bundle(*others)
    graph = torch.cuda.CUDAGraph()

    with torch.cuda.graph(graph):
        out = bundle(*tensors)
    for to, tensor in zip(tensors, others, strict=True):
        to.copy_(tensor)
    graph.replay()
    torch.cuda.synchronize()

    assert torch.equal(out, expected)


def test_the_first_call_may_be_captured(torch: Any, bundle: Bundle) -> None:
    tensors = inputs(torch, bundle)
    fresh = load(bundle.path)
    graph = torch.cuda.CUDAGraph()

    with torch.cuda.graph(graph):
        out = fresh(*tensors)
    graph.replay()

    assert_right(torch, bundle, out, tensors)


def test_strided_inputs_are_read_where_they_are(torch: Any, bundle: Bundle) -> None:
    tensors = inputs(torch, bundle)
    expected = bundle(*tensors)
    wide = [torch.cat([tensor, torch.full_like(tensor, torch.nan)], dim=2) for tensor in tensors]
    views = [view[:, :, : tensor.shape[2]] for view, tensor in zip(wide, tensors, strict=True)]
    swapped = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tensors]

    assert torch.equal(bundle(*views), expected)
    assert torch.equal(bundle(*swapped), expected)


def test_strided_outputs_are_written_where_they_are(torch: Any, bundle: Bundle) -> None:
    tensors = inputs(torch, bundle)
    expected = bundle(*tensors)
    wide = torch.full((*expected.shape[:2], 2 * expected.shape[2], expected.shape[3]), 7.0, device="cuda").to(
        expected.dtype
    )

    bundle(*tensors, out=wide[:, :, : expected.shape[2]])

    assert torch.equal(wide[:, :, : expected.shape[2]], expected)
    assert (wide[:, :, expected.shape[2] :] == 7.0).all()


def test_columns_behind_the_head_dim_are_neither_read_nor_written(torch: Any, bundle: Bundle) -> None:
    tensors = inputs(torch, bundle)
    expected = bundle(*tensors)
    for beside in (torch.nan, torch.finfo(expected.dtype).max):
        wide = [torch.cat([t, torch.full_like(t[..., :GAP], beside)], dim=-1) for t in tensors]
        out = torch.full((*expected.shape[:-1], expected.shape[-1] + GAP), 7.0, device="cuda").to(expected.dtype)

        bundle(*(w[..., :-GAP] for w in wide), out=out[..., :-GAP])

        assert torch.equal(out[..., :-GAP], expected)
        assert (out[..., -GAP:] == 7.0).all()


def test_without_keys_the_output_is_zero(torch: Any, bundle: Bundle) -> None:
    if "Sk" not in bundle.manifest.sizes:
        pytest.skip("the key length is fixed")
    tensors = inputs(torch, bundle, Sk=0)
    full = torch.full_like(bundle(*tensors), torch.nan)

    out = bundle(*tensors, out=full)

    assert (out == 0).all()
    if len(bundle.manifest.outputs) > 1:
        assert (bundle(*tensors, return_lse=True)[1] == -torch.inf).all()


@pytest.mark.parametrize("size", ["B", "Sq"])
def test_empty_outputs_come_without_a_launch(torch: Any, bundle: Bundle, size: str) -> None:
    if size not in bundle.manifest.sizes:
        pytest.skip(f"{size} is fixed")

    assert bundle(*inputs(torch, bundle, **{size: 0})).numel() == 0
    torch.cuda.synchronize()


def test_the_raw_launch_gives_the_same(torch: Any, bundle: Bundle) -> None:
    tensors = inputs(torch, bundle)
    results = bundle(*tensors, return_lse=len(bundle.manifest.outputs) > 1)
    outputs = [torch.full_like(t, torch.nan) for t in (results if isinstance(results, tuple) else (results,))]
    call, manifest = bundle.manifest.call, bundle.manifest
    named = {call[name]: tensor for name, tensor in zip("qkv", tensors, strict=True)}
    sizes = {
        dim: extent
        for name, tensor in named.items()
        for dim, extent in zip(manifest.tensor(name).dims, tensor.shape, strict=True)
        if isinstance(dim, str)
    }

    bundle.launch(
        named | dict(zip(manifest.outputs, outputs, strict=True)),
        sizes,
        {scalar.name: manifest.default_scale for scalar in manifest.scalars},
    )

    assert torch.equal(outputs[0], results[0] if isinstance(results, tuple) else results)


def test_another_thread_may_call(torch: Any, bundle: Bundle) -> None:
    tensors = inputs(torch, bundle)
    expected = bundle(*tensors)
    found: list[Any] = []

    def work() -> None:
        for _ in range(20):
            found.append(bundle(*tensors))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()

    assert len(found) == 80
    assert all(torch.equal(out, expected) for out in found)


def test_another_device_may_be_used(torch: Any, bundle: Bundle) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    tensors = inputs(torch, bundle)
    expected = bundle(*tensors)

    out = bundle(*(tensor.to("cuda:1") for tensor in tensors))

    assert out.device == torch.device("cuda", 1)
    assert torch.equal(out.cpu(), expected.cpu())
    with pytest.raises(LaunchError, match="k is on cuda:1, q on cuda:0"):
        bundle(tensors[0], tensors[1].to("cuda:1"), tensors[2])


def bad_calls(torch: Any, tensors: list[Any]) -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    q, k, v = tensors
    room = torch.empty(q.numel() + 8, dtype=q.dtype, device="cuda")
    yield "requires grad", [q.detach().requires_grad_(), k, v], {}
    yield "is of torch.float32", [q, k.float(), v], {}
    yield "dimensions, expected", [q[0], k, v], {}
    yield "the kernel takes|is .* in", [q, k[:, :-1], v], {}
    yield "last stride of q", [torch.cat([q, q], -1)[..., ::2], k, v], {}
    yield "starts at an address", [room[1 : q.numel() + 1].view(q.shape), k, v], {}
    yield "is on cpu", [q, k, v.cpu()], {}
    yield "is on meta", [q.to("meta"), k, v], {}
    yield "no tensor", [q, k, None], {}
    yield "not finite", [q, k, v], {"scale": float("nan")}
    yield "no number", [q, k, v], {"scale": torch.tensor(1.0, device="cuda")}
    yield "shares memory with q", [q, k, v], {"out": q}


def test_a_wrong_call_is_a_launch_error_and_harms_nothing(torch: Any, bundle: Bundle) -> None:
    if not bundle.manifest.scalars:
        pytest.skip("the kernel takes no scale")
    tensors = inputs(torch, bundle)

    for words, arguments, more in bad_calls(torch, tensors):
        if "out" in more and tensors[0].shape[-1] != tensors[2].shape[-1]:
            continue
        with pytest.raises(LaunchError, match=words):
            bundle(*arguments, **more)

    assert_right(torch, bundle, bundle(*tensors), tensors)


def test_a_cubin_of_another_architecture_is_refused(torch: Any, bundle: Bundle) -> None:
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability()
    other = replace(bundle.manifest, built_arch="sm_75" if major != 7 else "sm_90")

    with pytest.raises(LaunchError, match=rf"--arch sm_{major}{minor}"):
        Launcher(other, bundle.files["kernel.cubin"], driver).load(0)


def test_compare_measures_error_and_time(torch: Any, bundle: Bundle) -> None:
    found = bundle.compare(*inputs(torch, bundle))

    assert found["ours_ms"] > 0
    if plain_mask(bundle.files["spec.json"]) is not None:
        assert 0 < found["max_error"] <= TOLERANCE[dtype_of(bundle)]
        assert found["mean_error"] <= found["max_error"]
    else:
        assert found["max_error"] == "not available"
