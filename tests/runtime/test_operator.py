"""The PyTorch operator on the CPU: what tracing sees, and a stand-in for the launch; skipped without PyTorch."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qimeng_attention.errors import EnvironmentMissing, LaunchError
from qimeng_attention.runtime import Bundle, Manifest, Requirement, load, read_folder
from qimeng_attention.runtime.manifest import Tensor
from qimeng_attention.runtime.operator import operator_name
from qimeng_attention.runtime.plan import TORCH_TYPES, make_plan

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'qimeng-attention[gpu]'")
NAMES = ["q", "k", "v", "out", "lse"]
SHAPES = ((2, 30, 8, 64), (2, 7, 2, 64), (2, 7, 2, 64))


class OnTheCpu(Bundle):
    """A bundle whose launch is PyTorch's attention."""

    calls, kept = 0, 0  # all, and those for which a bundle keeps memory

    def __call__(self, q: Any, k: Any, v: Any, *, scale: Any = None, return_lse: bool = False, **_: Any) -> Any:
        if torch.is_grad_enabled() and q.requires_grad:
            raise LaunchError("q requires grad, and the kernel has no backward")
        self.calls += 1
        self.kept += not return_lse and len(self.manifest.outputs) > 1
        keys, values = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2).float() for t in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), keys) * (scale or self.manifest.default_scale)
        out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values).to(q.dtype).contiguous()
        return (out, scores.logsumexp(-1).contiguous()) if return_lse else out


@pytest.fixture
def bundle(folder: Path) -> OnTheCpu:
    return OnTheCpu(read_folder(folder))


@pytest.fixture
def bundle_named(
    tmp_path: Path, manifest: Manifest, rewrite: Callable[[Path, Manifest], None]
) -> Callable[..., Bundle]:
    """Write a bundle of its own for a test: an operator is registered once in a process, with its first bundle."""

    def make(kernel: str, kind: type[Bundle] = OnTheCpu, **changed: Any) -> Bundle:
        rewrite(tmp_path / kernel, replace(manifest, kernel=kernel, **changed))
        return kind(read_folder(tmp_path / kernel))

    return make


def inputs(batch: int = 2, seqlen_q: int = 30, seqlen_k: int = 7, *, device: str = "cpu") -> list[Any]:
    shapes = ((batch, seqlen_q, 8, 64), (batch, seqlen_k, 2, 64), (batch, seqlen_k, 2, 64))
    return [torch.randn(shape, dtype=torch.float32).to(device, torch.bfloat16) for shape in shapes]


def fakes(*sizes: int, device: str = "cuda") -> list[Any]:
    shapes = [tensor.shape for tensor in inputs(*sizes, device="meta")]
    return [torch.empty(shape, dtype=torch.bfloat16, device=device) for shape in shapes]


@pytest.fixture
def fake_mode() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


# ------------------------------------------------------------------------------------------ registration
def test_a_bundle_loaded_twice_is_one_operator(bundle_named: Callable[..., Bundle]) -> None:
    path = bundle_named("twice").path

    assert load(path).operator() is load(path).operator()


def test_threads_may_register_the_same(bundle_named: Callable[..., Bundle]) -> None:
    bundle, found = bundle_named("many_threads"), []

    threads = [threading.Thread(target=lambda: found.append(bundle.operator())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len({id(operator) for operator in found}) == 1


def test_the_name_is_stable_and_of_this_bundle_alone(bundle_named: Callable[..., Bundle]) -> None:
    found = bundle_named("stable")
    name = found.operator().name

    assert name == operator_name(load(found.path).manifest)
    assert name.startswith("qimeng::stable_")
    assert name != operator_name(replace(found.manifest, default_scale=0.5))
    assert getattr(torch.ops.qimeng, name.split("::")[1]).default is found.operator().plain


def test_without_q_k_and_v_there_is_no_operator(bundle_named: Callable[..., Bundle]) -> None:
    bundle = bundle_named("uncalled", call={}, outputs=())

    with pytest.raises(LaunchError, match="no operator of q, k and v"):
        bundle.operator()


def test_without_torch_it_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> None:
    from qimeng_attention.runtime import operator

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(operator, "_operators", {})

    with pytest.raises(EnvironmentMissing, match="needs PyTorch"):
        load(folder).operator()


def test_a_copied_model_has_the_same_operator(bundle: OnTheCpu) -> None:
    operator = bundle.operator()

    assert copy.deepcopy(SimpleNamespace(attention=operator)).attention.plain is operator.plain


# ------------------------------------------------------------------------------------------ what tracing sees
@pytest.mark.parametrize("sizes", [(2, 30, 7), (0, 30, 7), (2, 0, 7), (1, 1, 1), (2, 30, 0)])
def test_fake_outputs_are_those_that_a_launch_allocates(
    manifest: Manifest, bundle: OnTheCpu, fake_mode: Any, sizes: tuple[int, int, int]
) -> None:
    given = fakes(*sizes)
    device = torch.device("cuda", 0)
    layouts = [(tuple(t.shape), t.stride(), t.dtype, device) for t in given]
    plan = make_plan(manifest, [*layouts, None, None], NAMES)

    found = bundle.operator()(*given, return_lse=True)

    for tensor, (shape, strides, *_), of in zip(found, plan.layouts[3:], manifest.tensors[3:], strict=True):
        assert (tuple(tensor.shape), tensor.stride()) == (shape, strides)
        assert str(tensor.dtype) == f"torch.{TORCH_TYPES[of.dtype]}"
        assert tensor.device.type == "cuda"
    assert bundle.operator()(*given).stride() == plan.layouts[3][1]


def test_fake_outputs_are_contiguous_whatever_the_inputs_are(bundle: OnTheCpu, fake_mode: Any) -> None:
    q, k, v = (torch.empty(b, h, s, d, dtype=torch.bfloat16, device="cuda").transpose(1, 2) for b, s, h, d in SHAPES)

    out, lse = bundle.operator()(q, k, v, return_lse=True)

    assert not q.is_contiguous()
    assert out.is_contiguous()
    assert lse.is_contiguous()


def test_sizes_may_be_symbols(bundle: OnTheCpu) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    operator = bundle.operator()
    graph = make_fx(lambda q, k, v: operator(q, k, v, scale=0.5, return_lse=True), tracing_mode="symbolic")(*inputs())

    (node,) = [n for n in graph.graph.nodes if n.op == "call_function" and n.target is operator.with_lse]
    out, lse = node.meta["val"]
    batch, seqlen_q = node.args[0].meta["val"].shape[:2]
    assert isinstance(batch, torch.SymInt)
    assert (str(out.shape[0]), str(out.shape[1])) == (str(batch), str(seqlen_q))
    assert tuple(out.shape[2:]) == (8, 64)
    assert (str(lse.shape[0]), lse.shape[1], str(lse.shape[2])) == (str(batch), 8, str(seqlen_q))
    assert str(node.args[1].meta["val"].shape[1]) != str(seqlen_q)


def test_sizes_that_data_decide_are_checked_when_the_program_runs(bundle: OnTheCpu) -> None:
    operator = bundle.operator()

    @torch.compile(backend="eager", fullgraph=True)
    def step(q: Any, k: Any, v: Any, seen: Any, kept: Any) -> Any:
        return operator(q, k[:, seen.nonzero()[:, 0]], v[:, kept.nonzero()[:, 0]])

    (q, k, v), seen = inputs(), torch.arange(7) % 2 == 0
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        torch.testing.assert_close(step(q, k, v, seen, seen), operator(q, k[:, seen], v[:, seen]))
        with pytest.raises(RuntimeError, match="Runtime assertion failed"):
            step(q, k, v, seen, torch.ones(7, dtype=torch.bool))


# ------------------------------------------------------------------------------------------ torch.compile, export
def test_a_traced_program_holds_the_operator_and_no_break(bundle: OnTheCpu) -> None:
    operator, graphs = bundle.operator(), []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    step = torch.compile(lambda q, k, v: operator(q * 2, k, v, scale=0.1) + 1, backend=backend, fullgraph=True)
    for sizes in ((2, 30, 7), (3, 31, 9), (4, 5, 11)):
        tensors = inputs(*sizes)
        torch.testing.assert_close(step(*tensors), operator(tensors[0] * 2, *tensors[1:], scale=0.1) + 1)

    assert len(graphs) == 2, "the second shape makes sizes symbolic, the third needs no other graph"
    for graph in graphs:
        assert sum(node.target is operator.plain for node in graph.graph.nodes) == 1


def test_a_compiled_module_holds_its_operator(bundle: OnTheCpu) -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = bundle.operator()

        def forward(self, q: Any, k: Any, v: Any) -> Any:
            out, lse = self.attention(q, k, v, return_lse=True)
            return out * lse.transpose(1, 2)[..., None]

    layer, tensors = Layer(), inputs()

    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(*tensors), layer(*tensors))


def test_a_program_of_fake_cuda_tensors_is_traced_whole(bundle: OnTheCpu, fake_mode: Any) -> None:
    operator = bundle.operator()

    out, lse = torch.compile(lambda q, k, v: operator(q, k, v, return_lse=True), backend="eager", fullgraph=True)(
        *fakes()
    )

    assert tuple(out.shape) == (2, 30, 8, 64)
    assert tuple(lse.shape) == (2, 8, 30)
    assert out.device.type == lse.device.type == "cuda"


def test_a_program_is_exported_with_any_lengths(bundle: OnTheCpu) -> None:
    class Layer(torch.nn.Module):
        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return operator(q, k, v)

    operator = bundle.operator()
    batch, long, short = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "long", "short"))

    program = torch.export.export(
        Layer(), tuple(inputs()), dynamic_shapes=({0: batch, 1: long}, {0: batch, 1: short}, {0: batch, 1: short})
    )

    tensors = inputs(3, 12, 40)
    torch.testing.assert_close(program.module()(*tensors), operator(*tensors))


@pytest.mark.parametrize("scale", [None, 0.25])
def test_opcheck_finds_nothing(bundle: OnTheCpu, scale: float | None) -> None:
    operator = bundle.operator()

    for overload in (operator.plain, operator.with_lse):
        found = torch.library.opcheck(overload, tuple(inputs()), {"scale": scale})
        assert set(found.values()) == {"SUCCESS"}


def test_the_bundle_is_called_once_for_each_call(bundle_named: Callable[..., Bundle]) -> None:
    bundle = bundle_named("counted")

    bundle.operator()(*inputs())

    assert bundle.calls == 1
    assert bundle.kept == 0, "memory kept between calls may be a graph's own"


def test_an_operator_runs_in_inference_mode(bundle: OnTheCpu) -> None:
    q, k, v = inputs()
    q.requires_grad_()

    with torch.inference_mode():
        assert not bundle.operator()(q, k, v).requires_grad


# ------------------------------------------------------------------------------------------ refusals
def test_a_tensor_that_requires_grad_is_refused_by_name(bundle: OnTheCpu, fake_mode: Any) -> None:
    q, k, v = fakes(device="cpu")  # a PyTorch without CUDA has no autograd for fake CUDA tensors
    k.requires_grad_()

    with pytest.raises(LaunchError, match=r"k requires grad") as caught:
        bundle.operator()(q, k, v)
    assert "torch.no_grad()" in caught.value.hint
    assert "k.detach()" in caught.value.hint

    with torch.no_grad():
        assert not bundle.operator()(q, k, v).requires_grad
    assert not bundle.operator()(q, k.detach(), v).requires_grad


def test_a_compiled_program_refuses_grad_in_the_same_words(bundle: OnTheCpu) -> None:
    step = torch.compile(bundle.operator(), backend="eager", fullgraph=True)
    q, k, v = inputs()
    v.requires_grad_()

    with pytest.raises(Exception, match="v requires grad, and the kernel has no backward"):
        step(q, k, v)
    with torch.no_grad():
        step(q, k, v)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("q is of torch.float16", lambda q, k, v: (q.half(), k, v)),
        ("v has 3 dimensions", lambda q, k, v: (q, k, v[0])),
        ("dimension 2 of q is 7, expected 8", lambda q, k, v: (q[:, :, :7], k, v)),
        ("dimension 1 of v is 6, expected Sk = 7", lambda q, k, v: (q, k, v[:, :6])),
        ("dimension 0 of k is 1, expected B = 2", lambda q, k, v: (q, k[:1], v)),
    ],
)
def test_what_a_launch_would_refuse_is_refused_while_tracing(
    bundle: OnTheCpu, fake_mode: Any, words: str, change: Callable[..., Any]
) -> None:
    with pytest.raises(LaunchError, match=words):
        bundle.operator()(*change(*fakes(device="cpu")))


def test_a_requirement_is_checked_while_tracing(bundle_named: Callable[..., Bundle], fake_mode: Any) -> None:
    operator = bundle_named("short", requires=(Requirement("Sk", "<=", 5),)).operator()

    with pytest.raises(LaunchError, match="needs Sk <= 5, which B = 2, Sq = 30, Sk = 7"):
        operator(*fakes())


def test_no_lse_is_given_where_there_is_none(bundle_named: Callable[..., Bundle], manifest: Manifest) -> None:
    bundle = bundle_named("no_lse", tensors=manifest.tensors[:4], outputs=("Out",))

    with pytest.raises(LaunchError, match="gives no lse"):
        bundle.operator()(*inputs(), return_lse=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_launch_itself_speaks_when_there_is_no_gpu(bundle_named: Callable[..., Bundle]) -> None:
    operator = bundle_named("without_gpu", Bundle).operator()

    with pytest.raises(EnvironmentMissing, match="NVIDIA GPU"):
        operator(*inputs())


# ------------------------------------------------------------------------------------------ named tensors
@pytest.fixture
def with_sinks(bundle_named: Callable[..., Bundle], manifest: Manifest) -> Bundle:
    sink = Tensor("Sink", "f32", manifest.tensors[0].dims[2:3], "input")
    return bundle_named("sinks", tensors=(*manifest.tensors, sink), call={**manifest.call, "sink": "Sink"})


def test_named_tensors_are_arguments_by_keyword(with_sinks: Bundle) -> None:
    operator, given = with_sinks.operator(), inputs()

    @torch.compile(backend="eager", fullgraph=True)
    def step(q: Any, k: Any, v: Any, sink: Any) -> Any:
        return operator(q, k, v, sink=sink)

    torch.testing.assert_close(step(*given, torch.zeros(8)), with_sinks(*given))
    torch.library.opcheck(operator.plain, (*given,), {"sink": torch.zeros(8)})
    with pytest.raises(LaunchError, match="the tensor sink is missing"):
        operator(*given)
    with pytest.raises(LaunchError, match="did you mean sink"):
        operator(*given, sinks=torch.zeros(8))


def test_named_tensors_are_checked_while_tracing(with_sinks: Bundle, fake_mode: Any) -> None:
    operator, given = with_sinks.operator(), fakes()

    out, lse = operator(*given, sink=torch.empty(8, device="cuda"), return_lse=True)

    assert (tuple(out.shape), tuple(lse.shape)) == ((2, 30, 8, 64), (2, 8, 30))
    for wrong, what in (
        (torch.empty(7, device="cuda"), "dimension 0 of sink is 7, expected .*8"),
        (torch.empty(8, dtype=torch.float16, device="cuda"), "sink is of torch.float16"),
    ):
        with pytest.raises(LaunchError, match=what):
            operator(*given, sink=wrong)


def test_a_named_tensor_that_requires_grad_is_refused_by_name(with_sinks: Bundle, fake_mode: Any) -> None:
    with pytest.raises(LaunchError, match="sink requires grad"):
        with_sinks.operator()(*fakes(device="cpu"), sink=torch.empty(8, requires_grad=True))
