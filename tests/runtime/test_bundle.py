from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.errors import EnvironmentMissing, LaunchError
from qimeng_attention.runtime import Bundle, GridAxis, Manifest, Scalar, Tensor, load


@pytest.fixture
def qkv(tensor: Callable[..., Any]) -> tuple[Any, Any, Any]:
    shapes = ((2, 300, 8, 64), (2, 70, 2, 64), (2, 70, 2, 64))
    q, k, v = (tensor(*shape, pointer=0x100_0000 * (index + 1)) for index, shape in enumerate(shapes))
    return q, k, v


@pytest.fixture
def bundle(folder: Path, gpu: SimpleNamespace) -> Bundle:
    gpu.driver.arguments = 23
    return load(folder)


def slots(*form_and_values: Any) -> list[bytes]:
    return [struct.pack(form, value) for form, value in zip(form_and_values[::2], form_and_values[1::2], strict=True)]


def test_a_call_launches_and_gives_the_output(bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    out = bundle(*qkv)

    (launch,) = gpu.driver.launches
    assert out is gpu.made[0]
    assert out.shape == (2, 300, 8, 64)
    assert out.dtype == "torch.bfloat16"
    assert launch.grid == (3, 8, 2)
    assert launch.stream == 77
    assert [launch.slots[i] for i in (0, 4, 8, 12, 16)] == [
        struct.pack("<q", tensor.pointer) for tensor in (*qkv, *gpu.made)
    ]
    assert launch.slots[19:] == slots("<i4x", 2, "<i4x", 300, "<i4x", 70, "<f4x", 0.125)


def test_lse_comes_with_the_output_if_asked_for(bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    out, lse = bundle(*qkv, return_lse=True, scale=0.5)

    assert (out, lse) == (gpu.made[0], gpu.made[1])
    assert lse.shape == (2, 8, 300)
    assert lse.dtype == "torch.float32"
    assert gpu.driver.launches[0].slots[-1] == struct.pack("<f4x", 0.5)


def test_given_outputs_are_filled_and_given_back(
    bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...], tensor: Callable[..., Any]
) -> None:
    out = tensor(2, 300, 8, 64, pointer=0x5000_0000)
    lse = tensor(2, 8, 300, pointer=0x6000_0000, dtype="torch.float32")

    assert bundle(*qkv, out=out) is out
    assert bundle(*qkv, out=out, lse=lse) is out
    assert bundle(*qkv, out=out, lse=lse, return_lse=True) == (out, lse)
    assert len(gpu.made) == 1
    assert gpu.driver.launches[-1].slots[12] == struct.pack("<q", 0x5000_0000)
    assert gpu.driver.launches[-1].slots[16] == struct.pack("<q", 0x6000_0000)


def test_a_second_call_with_other_strides_gets_its_own_arguments(
    bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...], tensor: Callable[..., Any]
) -> None:
    q, k, v = qkv
    strided = tensor(2, 70, 2, 64, strides=(70 * 256, 256, 64, 1), pointer=k.pointer)

    for keys in (k, strided, k):
        bundle(q, keys, v)

    assert [launch.slots[5] for launch in gpu.driver.launches] == slots("<q", 8960, "<q", 17920, "<q", 8960)


@pytest.mark.parametrize("refused", ["grad", "dtype", "shape", "pointer", "scale", "none", "out is q", "lse"])
def test_what_is_refused_is_never_launched(
    bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...], tensor: Callable[..., Any], refused: str
) -> None:
    q, k, v = qkv
    more: dict[str, Any] = {}
    if refused == "grad":
        gpu.grad, q.requires_grad = True, True
    elif refused == "dtype":
        k.dtype = "torch.float32"
    elif refused == "shape":
        v = tensor(2, 71, 2, 64)
    elif refused == "pointer":
        v.pointer += 2
    elif refused == "scale":
        more["scale"] = -1.0
    elif refused == "none":
        v = None
    elif refused == "out is q":
        more["out"] = q
    else:
        more["lse"] = tensor(2, 8, 300)

    with pytest.raises(LaunchError):
        bundle(q, k, v, **more)

    assert gpu.driver.launches == []


def test_a_tensor_that_requires_grad_is_taken_where_grad_is_off(
    bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]
) -> None:
    qkv[0].requires_grad = True

    bundle(*qkv)

    assert len(gpu.driver.launches) == 1


def test_a_refusal_does_not_stick_to_the_next_call(bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    with pytest.raises(LaunchError):
        bundle(*qkv, scale=float("nan"))

    bundle(*qkv)

    assert len(gpu.driver.launches) == 1


def test_empty_outputs_come_without_a_launch(bundle: Bundle, gpu: SimpleNamespace, tensor: Callable[..., Any]) -> None:
    out, lse = bundle(tensor(2, 0, 8, 64), tensor(2, 7, 2, 64), tensor(2, 7, 2, 64), return_lse=True)

    assert out.shape == (2, 0, 8, 64)
    assert lse.shape == (2, 8, 0)
    assert gpu.driver.launches == []


def test_without_keys_the_kernel_runs(
    bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...], tensor: Callable[..., Any]
) -> None:
    nothing = tensor(2, 0, 2, 64, pointer=0)

    bundle(qkv[0], nothing, nothing)

    assert gpu.driver.launches[0].slots[19:22] == slots("<i4x", 2, "<i4x", 300, "<i4x", 0)


def test_the_raw_launch_takes_names_of_the_manifest(
    bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...], tensor: Callable[..., Any]
) -> None:
    tensors = dict(zip("QKV", qkv, strict=True))
    tensors["Out"] = tensor(2, 300, 8, 64, pointer=0x5000_0000)
    tensors["Lse"] = tensor(2, 8, 300, pointer=0x6000_0000, dtype="torch.float32")
    sizes = {"Sk": 70, "Sq": 300, "B": 2}

    bundle.launch(tensors, sizes, {"scale": 0.25})

    assert gpu.driver.launches[0].slots[19:] == slots("<i4x", 2, "<i4x", 300, "<i4x", 70, "<f4x", 0.25)
    for wrong, words in (
        (({"Q": qkv[0]}, sizes, {"scale": 1.0}), "the tensor K is missing"),
        (({**tensors, "X": qkv[0]}, sizes, {"scale": 1.0}), "the tensor X is not known"),
        ((tensors, {**sizes, "Sq": 299}, {"scale": 1.0}), "dimension 1 of Q is 300"),
        ((tensors, {**sizes, "Sq": [1]}, {"scale": 1.0}), r"Sq = \[1\] is no size"),
        ((tensors, {"B": 2}, {"scale": 1.0}), "the size Sq is missing"),
        ((tensors, sizes, {}), "the scalar scale is missing"),
        ((tensors, sizes, {"scale": 0.0}), "scale > 0"),
        (({**tensors, "Out": None}, sizes, {"scale": 1.0}), "Out is a NoneType"),
        (({**tensors, "Out": tensors["Q"]}, sizes, {"scale": 1.0}), "Out shares memory with Q"),
    ):
        with pytest.raises(LaunchError, match=words):
            bundle.launch(*wrong)
    assert len(gpu.driver.launches) == 1


def test_a_kernel_without_lse_gives_none(
    folder: Path, gpu: SimpleNamespace, qkv: tuple[Any, ...], manifest: Manifest, rewrite: Callable[..., None]
) -> None:
    gpu.driver.arguments = 20
    rewrite(folder, replace(manifest, tensors=manifest.tensors[:4], outputs=("Out",)))
    bundle = load(folder)

    assert bundle(*qkv) is gpu.made[0]
    with pytest.raises(LaunchError, match="gives no lse"):
        bundle(*qkv, return_lse=True)


def test_a_kernel_without_scale_takes_none(
    folder: Path, gpu: SimpleNamespace, qkv: tuple[Any, ...], manifest: Manifest, rewrite: Callable[..., None]
) -> None:
    rewrite(folder, replace(manifest, scalars=()))
    bundle = load(folder)

    bundle(*qkv)

    assert len(gpu.driver.launches[0].slots) == 22
    with pytest.raises(LaunchError, match="takes no scale"):
        bundle(*qkv, scale=1.0)


def test_a_kernel_that_is_no_attention_is_launched_only(
    folder: Path,
    gpu: SimpleNamespace,
    qkv: tuple[Any, ...],
    manifest: Manifest,
    tensor: Callable[..., Any],
    rewrite: Callable[..., None],
) -> None:
    gpu.driver.arguments = 4
    copy = replace(
        manifest,
        tensors=(Tensor("Y", "f32", ("N",), "output"),),
        sizes=("N",),
        scalars=(Scalar("a"), Scalar("b")),
        grid=(GridAxis("x", 0, "N"),),
        call={},
        outputs=(),
        requires=(),
    )
    rewrite(folder, copy)
    bundle = load(folder)

    bundle.launch({"Y": tensor(9, dtype="torch.float32")}, {"N": 9}, {"a": 1, "b": 2})

    assert gpu.driver.launches[0].slots == slots("<q", 0x10000, "<i4x", 9, "<f4x", 1.0, "<f4x", 2.0)
    with pytest.raises(LaunchError, match="no operator of q, k and v"):
        bundle(*qkv)


def test_prepare_loads_and_launches_nothing(bundle: Bundle, gpu: SimpleNamespace) -> None:
    bundle.prepare(0)

    assert "cuModuleLoadData" in gpu.driver.calls
    assert gpu.driver.launches == []


def test_without_a_gpu_a_call_says_so_in_one_line(bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    gpu.available = False

    with pytest.raises(EnvironmentMissing, match="NVIDIA GPU") as caught:
        bundle(*qkv)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["torch", "cuda.bindings"])
def test_without_a_library_a_call_says_so_in_one_line(
    bundle: Bundle, qkv: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(EnvironmentMissing, match="pip install") as caught:
        bundle(*qkv)

    assert "\n" not in str(caught.value)


def test_loading_and_showing_import_neither_torch_nor_cuda(folder: Path) -> None:
    code = (
        "import sys; from qimeng_attention.runtime import load; load(sys.argv[1]).show();"
        "loaded = {name.partition('.')[0] for name in sys.modules};"
        "assert not loaded & {'torch', 'cuda', 'numpy', 'pydantic', 'lark'}, loaded"
    )

    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_show_tells_what_the_bundle_is(folder: Path) -> None:
    text = load(folder).show()

    for words in (
        "kernel     gqa_causal_d64_bf16 for A100 (sm_80, built for sm_90)",
        "Hq = 8",
        "mask = causal",
        "Q (B, Sq, 8, 64) bf16 input",
        "scale > 0",
        "tiles      BM = 128, BN = 64\n",
        "schedule   ring K stages 2\n           warps 4 along q\n",
        "block ceildiv(Sq, 128), head 8, batch B; 128 threads, 65536 bytes",
        "registers = 168, spill_store_bytes = 0, occupancy.blocks_per_sm = 2",
        "verdict = accepted, worst_error = 0.002",
        "versions.nvrtc = 13.2",
    ):
        assert words in text
    assert "speed" not in text


def test_show_says_that_a_kernel_was_not_judged(folder: Path, manifest: Manifest, rewrite: Callable[..., None]) -> None:
    files = {name: content for name, content in load(folder).files.items() if name != "verdict.json"}
    (folder / "verdict.json").unlink()
    rewrite(folder, manifest, {**files, "speed.json": b'{"ms": 0.5}'})

    text = load(folder).show()

    assert "verdict    none: the kernel has not been judged" in text
    assert "speed      ms = 0.5" in text


def test_a_bundle_says_what_it_is(folder: Path, manifest: Manifest) -> None:
    bundle = load(folder)

    assert repr(bundle) == f"<Bundle gqa_causal_d64_bf16 for A100 at {folder}>"
    assert bundle.manifest == manifest
    assert bundle.path == folder


# ------------------------------------------------------------------ launches that are kept


def test_other_addresses_are_other_arguments(bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    q, k, v = qkv
    outputs = {"out": bundle(*qkv), "lse": bundle(*qkv, return_lse=True)[1]}
    moved = replace(k, pointer=0x900_0000)

    for keys in (k, moved, k):
        bundle(q, keys, v, **outputs)

    assert [launch.slots[4] for launch in gpu.driver.launches[-3:]] == slots(
        "<q", k.pointer, "<q", moved.pointer, "<q", k.pointer
    )


def test_a_bad_address_is_found_at_every_call(bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    q, k, v = qkv
    bundle(*qkv)

    for _ in range(2):
        with pytest.raises(LaunchError, match="no multiple of 16 bytes"):
            bundle(q, replace(k, pointer=k.pointer + 8), v)


@pytest.mark.parametrize("wrong", [True, "0.1", [0.1], None.__class__])
def test_a_scale_that_is_no_number_is_refused_after_a_good_one(
    bundle: Bundle, qkv: tuple[Any, ...], wrong: Any
) -> None:
    bundle(*qkv, scale=1.0)

    with pytest.raises(LaunchError, match="no number"):
        bundle(*qkv, scale=wrong)


def test_an_lse_that_nobody_reads_is_allocated_once(bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    out = bundle(*qkv)
    bundle(*qkv, out=out)
    kept, before = gpu.driver.launches[-1].slots[16], len(gpu.made)

    bundle(*qkv, out=out)

    assert len(gpu.made) == before
    assert gpu.driver.launches[-1].slots[16] == kept


@pytest.mark.parametrize("change", [{"stream": 78}, {"capturing": True}])
def test_another_stream_or_a_capture_gets_an_lse_of_its_own(
    bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...], change: dict[str, Any]
) -> None:
    out = bundle(*qkv)
    bundle(*qkv, out=out)
    kept = gpu.driver.launches[-1].slots[16]

    gpu.__dict__.update(change)
    bundle(*qkv, out=out)

    assert gpu.driver.launches[-1].slots[16] != kept


def test_an_lse_that_is_read_is_never_the_kept_one(bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...]) -> None:
    bundle(*qkv)
    kept = gpu.driver.launches[-1].slots[16]

    _, lse = bundle(*qkv, return_lse=True)
    bundle(*qkv)

    assert struct.pack("<q", lse.pointer) != kept
    assert gpu.driver.launches[-1].slots[16] == kept


def test_a_refused_call_leaves_no_memory_behind(
    bundle: Bundle, gpu: SimpleNamespace, qkv: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = sys.modules["torch"]
    with monkeypatch.context() as fake:
        for name in ("empty", "empty_like"):
            real = getattr(torch, name)
            fake.setattr(torch, name, lambda *a, real=real, **k: replace(real(*a, **k), pointer=0))
        with pytest.raises(LaunchError, match="has no memory"):
            bundle(*(replace(x, pointer=0) for x in qkv))

    bundle(*qkv)

    assert len(gpu.driver.launches) == 1


def test_outputs_may_come_before_inputs(
    folder: Path, gpu: SimpleNamespace, rewrite: Callable[..., None], manifest: Manifest, qkv: tuple[Any, ...]
) -> None:
    q, k, v, out, lse = manifest.tensors
    rewrite(folder, replace(manifest, tensors=(out, q, k, v, lse)))
    gpu.driver.arguments = 23

    found = load(folder)(*qkv)

    assert found.shape == (2, 300, 8, 64)
    assert gpu.driver.launches[0].slots[0] == struct.pack("<q", found.pointer)


def test_a_shape_may_be_a_list(bundle: Bundle, qkv: tuple[Any, ...]) -> None:
    q, k, v = qkv

    assert bundle(replace(q, shape=list(q.shape)), k, v).shape == (2, 300, 8, 64)
