"""What is generated is an operator that PyTorch traces, whatever the layout of a call; without PyTorch it is skipped.

Kernels are made up to their CuTe C++: nothing is compiled, and nothing is launched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import Bundle, Manifest, evaluate
from qimeng_attention.runtime.folder import Contents
from qimeng_attention.runtime.plan import TORCH_TYPES, make_plan
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import run
from qimeng_attention.workflow.generate import manifest_of

torch = pytest.importorskip("torch", reason="needs PyTorch: make test, or pip install 'qimeng-attention[gpu]'")

SPECS: dict[str, dict[str, Any]] = {
    "grouped heads": {"Hq": 8, "Hk": 2, "Dqk": 64, "mask": "causal"},
    "values of another head dim": {"Hq": 4, "Dqk": 96, "Dv": 64, "dtype": "fp16"},
    "no LSE": {"Hq": 4, "Hk": 1, "Dqk": 64, "outputs": ["O"]},
    "named tensors": {
        "Hq": 4,
        "Dqk": 64,
        "mask": "doc[b, q_idx] == doc[b, kv_idx]",
        "score": "score - slopes[h] * kv_idx + table[N - 1, 0]",
        "tensors": {
            "doc": {"dims": ["B", "Sk"], "dtype": "i64"},
            "slopes": {"dims": ["Hq"], "dtype": "f32"},
            "table": {"dims": ["N", 3], "dtype": "bf16"},
        },
    },
    "one query, two kernels": {"Hq": 16, "Hk": 2, "Dqk": 64, "Sq": 1},
}
SIZES = {"B": 3, "Sq": 70, "Sk": 130, "N": 5}
LAYOUTS = ("contiguous", "heads first", "one tensor of q, k and v", "padded rows")


@cache
def manifest(name: str) -> Manifest:
    """Make the manifest of a kernel that nobody has compiled."""
    spec = AttentionSpec.make(name=name.replace(" ", "_").replace(",", ""), **SPECS[name])
    results = run(spec, target="H200" if spec.Sq == 1 else "A100", judge=False, until="cute").results
    unbuilt = SimpleNamespace(versions={}, report=SimpleNamespace())
    return manifest_of(replace(results, builds=tuple(unbuilt for _ in results.translations)))


@pytest.fixture(params=SPECS)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return of(request.param)


def of(name: str) -> Bundle:
    return Bundle(Contents(Path(), manifest(name), {}))


def inputs(bundle: Bundle, layout: str, device: str = "cuda", **changed: int) -> dict[str, Any]:
    """Give fake tensors of a call; those of four dimensions lie as the layout says."""
    face = bundle.manifest.face
    sizes = SIZES | {r.left: r.right for r in face.requires if r.op == "=="} | changed
    found = {}
    for label, name in face.call.items():
        tensor = face.tensor(name)
        shape = [evaluate(dim, sizes) for dim in tensor.dims]
        dtype = getattr(torch, TORCH_TYPES[tensor.dtype])
        found[label] = _laid_out(shape, dtype, device, layout if len(shape) == 4 else "contiguous")
    return found


def _laid_out(shape: list[int], dtype: Any, device: str, layout: str) -> Any:
    if layout == "contiguous":
        return torch.empty(shape, dtype=dtype, device=device)
    _, length, heads, dim = shape
    strides = {
        "heads first": (heads * length * dim, dim, length * dim, 1),
        "one tensor of q, k and v": (length * 3 * heads * dim, 3 * heads * dim, dim, 1),
        "padded rows": (length * heads * (dim + 8), heads * (dim + 8), dim + 8, 1),
    }
    return torch.empty_strided(shape, strides[layout], dtype=dtype, device=device)


@pytest.fixture
def fake_mode() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def results(bundle: Bundle, given: Any) -> tuple[Any, ...]:
    return given if isinstance(given, tuple) else (given,)


def asked(bundle: Bundle, call: Callable[..., Any], given: dict[str, Any]) -> tuple[Any, ...]:
    """Call for everything that the kernel gives."""
    return results(bundle, call(**given, return_lse=True) if len(bundle.manifest.outputs) > 1 else call(**given))


def assert_as_launched(bundle: Bundle, given: dict[str, Any], found: tuple[Any, ...]) -> None:
    """Compare fake outputs with what a launch allocates: shape, strides, type and device."""
    face = bundle.manifest.face
    labels = {name: label for label, name in face.call.items()}
    device = SimpleNamespace(type="cuda", index=0)
    taken = {face.call[label]: (tuple(t.shape), t.stride(), t.dtype, device) for label, t in given.items()}
    names = [tensor.name for tensor in face.tensors]
    plan = make_plan(face, [taken.get(name) for name in names], [labels.get(name, name) for name in names])
    allocated = [
        (shape, strides, TORCH_TYPES[tensor.dtype])
        for name in face.outputs
        for tensor, (shape, strides, *_) in zip(face.tensors, plan.layouts, strict=True)
        if tensor.name == name
    ]
    assert [(tuple(t.shape), t.stride(), str(t.dtype).removeprefix("torch.")) for t in found] == allocated
    assert {t.device.type for t in found} == {"cuda"}


# ------------------------------------------------------------------------------------------ fake tensors
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_outputs_are_those_of_a_launch(bundle: Bundle, fake_mode: Any, layout: str) -> None:
    given = inputs(bundle, layout)

    found = asked(bundle, bundle.operator(), given)

    assert_as_launched(bundle, given, found)
    assert tuple(bundle.operator()(**given).shape) == tuple(found[0].shape)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("layout", ["contiguous", "heads first"])
def test_a_program_of_fake_tensors_is_traced_whole(bundle: Bundle, fake_mode: Any, layout: str, backend: str) -> None:
    operator, given = bundle.operator(), inputs(bundle, layout)
    step = torch.compile(lambda **tensors: asked(bundle, operator, tensors), backend=backend, fullgraph=True)

    assert_as_launched(bundle, given, step(**given))


def test_a_program_is_exported_with_any_lengths(bundle: Bundle) -> None:
    operator = bundle.operator()

    class Layer(torch.nn.Module):
        def forward(self, tensors: dict[str, Any]) -> Any:
            return operator(**tensors)

    free = {d for t in bundle.manifest.face.tensors for d in t.dims if isinstance(d, str)} & SIZES.keys()
    sizes = {name: torch.export.Dim(name.lower(), min=2, max=64) for name in free}
    face = bundle.manifest.face
    shapes = {
        label: {axis: sizes[d] for axis, d in enumerate(face.tensor(name).dims) if isinstance(d, str) and d in sizes}
        for label, name in face.call.items()
    }
    given = inputs(bundle, "contiguous", "meta", Sq=30, Sk=40)

    program = torch.export.export(Layer(), (given,), dynamic_shapes=(shapes,))

    (node,) = [n for n in program.graph.nodes if n.target in (operator.plain, operator.with_lse)]
    assert {str(n) for n in node.meta["val"].shape if not isinstance(n, int)} <= {
        str(n) for p in program.graph.nodes if p.op == "placeholder" for n in p.meta["val"].shape
    }
    assert not isinstance(node.meta["val"].shape[0], int)


# ------------------------------------------------------------------------------------------ refusals
def test_a_tensor_that_requires_grad_is_refused_by_name(bundle: Bundle, fake_mode: Any) -> None:
    for label, tensor in inputs(bundle, "contiguous", "cpu").items():
        if not tensor.is_floating_point():
            continue
        given = inputs(bundle, "contiguous", "cpu")
        given[label].requires_grad_()

        with pytest.raises(LaunchError, match=f"^{label} requires grad, and the kernel has no backward"):
            bundle.operator()(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doc": None}, "the tensor doc is missing"),
        ({"docs": ()}, "docs is no tensor of the kernel"),
        ({"slopes": (3,)}, "dimension 0 of slopes is 3, expected Hq = 4"),
        ({"doc": (3, 131)}, "dimension 1 of doc is 131, expected Sk = 130"),
        ({"table": (5,)}, "table has 1 dimensions"),
    ],
)
def test_named_tensors_are_checked_while_tracing(fake_mode: Any, change: dict[str, Any], message: str) -> None:
    bundle = of("named tensors")
    given = inputs(bundle, "contiguous")
    for name, shape in change.items():
        given[name] = torch.empty(shape, dtype=given[name].dtype) if shape and name in given else shape
    given = {name: tensor for name, tensor in given.items() if tensor is not None}

    with pytest.raises(LaunchError, match=message):
        bundle.operator()(**given)


def test_named_tensors_may_come_in_a_mapping(fake_mode: Any) -> None:
    bundle = of("named tensors")
    given = inputs(bundle, "contiguous")
    q, k, v = (given.pop(name) for name in "qkv")

    assert bundle.operator()(q, k, v, tensors=given).shape == q.shape
