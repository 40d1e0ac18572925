"""The adapter for transformers on the CPU: small random models, and PyTorch in the place of the kernel."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.errors import BundleError, EnvironmentMissing, LaunchError
from qimeng_attention.runtime import Bundle, GridAxis, Manifest, Requirement, Scalar, Tensor, read_folder
from qimeng_attention.runtime.manifest_json import to_json

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'qimeng-attention[transformers]'")
transformers = pytest.importorskip("transformers", reason="needs pip install 'qimeng-attention[transformers]'")

from qimeng_attention.integrations.transformers import (  # noqa: E402
    Adapter,
    configuration_of,
    is_causal_mask,
    register,
    spec_of,
)

# What a model calls the keys it has seen: newer versions call them by another name.
_TAKEN = inspect.signature(transformers.LlamaForCausalLM.forward).parameters
CACHE = "cache" if "cache" in _TAKEN else "past_key_values"
NAME = "qimeng_test"
LAYERS, HEADS, KEY_HEADS, HEAD_DIM, VOCABULARY = 2, 4, 2, 64, 96


class OnTheCpu(Bundle):
    """A bundle whose launch is plain PyTorch, and which keeps what it was called with."""

    seen: list[Any]

    def __call__(self, q: Any, k: Any, v: Any, *, scale: Any = None, return_lse: bool = False, **_: Any) -> Any:
        if torch.is_grad_enabled() and q.requires_grad:
            raise LaunchError("q requires grad, and the kernel has no backward")
        spec = json.loads(self.files["spec.json"])
        self.__dict__.setdefault("seen", []).append((q, k, v, scale))
        keys, values = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2).float() for t in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), keys) * (scale or self.manifest.default_scale)
        if spec.get("softcap"):
            scores = spec["softcap"] * torch.tanh(scores / spec["softcap"])
        if spec["mask"] == "causal":
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
            scores = scores.masked_fill(~seen, -torch.inf)
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values).to(q.dtype).contiguous()


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., OnTheCpu]:
    """Write and load a bundle for the models here, with another description where one is given."""

    def make(kernel: str = "llama", *, spec: Any = None, **changed: Any) -> OnTheCpu:
        fields = {"Hq": HEADS, "Hk": KEY_HEADS, "Dqk": HEAD_DIM, "mask": "causal", **changed} if spec is None else spec
        names = ("sketch.tl", "code.tl", "scheduled.tl", "kernel.cu", "kernel.cubin", "report.json", "reasons.json")
        files = {"spec.json": json.dumps(fields).encode(), **dict.fromkeys(names, b"{}")}
        sizes = ("B", "Sq", "Sk", "Hq", "Hk")
        manifest = Manifest(
            kernel=kernel,
            target="A100",
            arch="sm_80",
            built_arch="sm_80",
            threads=128,
            shared_bytes=0,
            grid=(GridAxis("block", 0, "Sq"),),
            tensors=(
                Tensor("Q", "bf16", ("B", "Sq", "Hq", HEAD_DIM), "input"),
                Tensor("K", "bf16", ("B", "Sk", "Hk", HEAD_DIM), "input"),
                Tensor("V", "bf16", ("B", "Sk", "Hk", HEAD_DIM), "input"),
                Tensor("Out", "bf16", ("B", "Sq", "Hq", HEAD_DIM), "output"),
            ),
            sizes=sizes,
            scalars=(Scalar("scale", "f32", ">", 0.0),),
            requires=(Requirement("Hq", "==", HEADS), Requirement("Hk", "==", KEY_HEADS)),
            call={"q": "Q", "k": "K", "v": "V"},
            outputs=("Out",),
            default_scale=HEAD_DIM**-0.5,
            provenance={"test": str(tmp_path)},  # an operator of its own for each test
            files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        )
        path = tmp_path / kernel
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
        (path / "manifest.json").write_bytes(to_json(manifest))
        return OnTheCpu(read_folder(path))

    return make


def model(implementation: str, *, kind: str = "Llama", **changed: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=256,
        attn_implementation=implementation,
        **changed,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16).eval()


def tokens(length: int = 33, batch: int = 2) -> Any:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def adapter(bundle: Callable[..., OnTheCpu]) -> Adapter:
    return register(bundle(), name=NAME)


# ------------------------------------------------------------------ what works
def test_logits_are_those_of_sdpa(adapter: Adapter) -> None:
    ours, peer = model(NAME), model("sdpa")

    with torch.no_grad():
        found, expected = ours(tokens()).logits.float(), peer(tokens()).logits.float()

    exact = model("sdpa").float()
    with torch.no_grad():
        truth = exact(tokens()).logits
    # No further from float32 than twice what PyTorch's own bf16 attention is.
    assert (found - truth).abs().max() <= 2 * (expected - truth).abs().max() + 1e-5
    assert (found - truth).abs().max() > 0


def test_decoding_continues_a_prefill(adapter: Adapter) -> None:
    ours = model(NAME)
    words = tokens()

    with torch.no_grad():
        whole = ours(words).logits
        begun = ours(words[:, :20], use_cache=True)
        rest = ours(words[:, 20:-1], use_cache=True, **{CACHE: begun.past_key_values})  # more than one query
        last = ours(words[:, -1:], use_cache=True, **{CACHE: rest.past_key_values})

    torch.testing.assert_close(torch.cat([begun.logits, rest.logits, last.logits], dim=1), whole, atol=2e-2, rtol=2e-2)


def test_a_model_generates(adapter: Adapter) -> None:
    words = tokens(8)

    with torch.no_grad():
        made = model(NAME).generate(words, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(words))

    assert made.shape == (2, 13)


def test_tensors_are_views_and_heads_are_not_repeated(bundle: Callable[..., OnTheCpu]) -> None:
    ours = bundle()
    adapter = register(ours, name=NAME)
    module = torch.nn.Module()
    q = torch.randn(2, HEADS, 5, HEAD_DIM).bfloat16()
    k, v = (torch.randn(2, KEY_HEADS, 7, HEAD_DIM).bfloat16() for _ in range(2))

    out, weights = adapter.attention(module, q, k, v, None, scaling=0.25)

    (given,) = ours.seen
    assert [t.data_ptr() for t in given[:3]] == [t.data_ptr() for t in (q, k, v)]
    assert given[1].shape == (2, 7, KEY_HEADS, HEAD_DIM)
    assert given[3] == 0.25
    assert (tuple(out.shape), weights) == ((2, 5, HEADS, HEAD_DIM), None)


def test_the_kernel_is_chosen_by_mask_and_cap(bundle: Callable[..., OnTheCpu]) -> None:
    kernels = {
        (True, None): bundle("causal"),
        (False, None): bundle("full", mask="full"),
        (True, 30.0): bundle("capped", softcap=30.0),
    }
    adapter = register(*kernels.values(), name=NAME)
    module = torch.nn.Module()
    q = torch.randn(1, HEADS, 3, HEAD_DIM).bfloat16()
    k = torch.randn(1, KEY_HEADS, 3, HEAD_DIM).bfloat16()

    for (causal, cap), kernel in kernels.items():
        adapter.attention(module, q, k, k, None, is_causal=causal, softcap=cap)
        assert len(kernel.seen) == 1
    module.is_causal = False
    adapter.attention(module, q, k, k)
    assert len(kernels[False, None].seen) == 2


def test_a_plain_mask_of_four_dimensions_is_understood(bundle: Callable[..., OnTheCpu]) -> None:
    causal, full = bundle("causal"), bundle("full", mask="full")
    adapter = register(causal, full, name=NAME)
    q = torch.randn(1, HEADS, 3, HEAD_DIM).bfloat16()
    k = torch.randn(1, KEY_HEADS, 5, HEAD_DIM).bfloat16()
    seen = torch.ones(3, 5, dtype=torch.bool).tril(2)[None, None]

    adapter.attention(torch.nn.Module(), q, k, k, seen)
    adapter.attention(torch.nn.Module(), q, k, k, torch.zeros(1, 1, 3, 5))

    assert (len(causal.seen), len(full.seen)) == (1, 1)
    assert is_causal_mask(torch.zeros(1, 1, 3, 5).masked_fill(~seen, torch.finfo(torch.float32).min), 3, 5)


def test_a_decoder_may_be_an_encoder(bundle: Callable[..., OnTheCpu]) -> None:
    causal, full = bundle("causal"), bundle("full", mask="full")
    register(causal, full, name=NAME)

    with torch.no_grad():
        found = model(NAME)(tokens(), is_causal=False).logits
        expected = model("sdpa")(tokens(), is_causal=False).logits

    assert (hasattr(causal, "seen"), len(full.seen)) == (False, LAYERS)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("length", [12, 33])
def test_a_mask_that_hides_nothing_is_taken(adapter: Adapter, length: int) -> None:
    words = tokens(length)

    with torch.no_grad():
        torch.testing.assert_close(model(NAME)(words, torch.ones_like(words)).logits, model(NAME)(words).logits)


def test_a_window_that_holds_every_key_is_causal(adapter: Adapter) -> None:
    with torch.no_grad():
        wide = model(NAME, kind="Mistral", sliding_window=64)(tokens()).logits
        plain = model(NAME, kind="Mistral", sliding_window=None)(tokens()).logits

    torch.testing.assert_close(wide, plain)


def test_a_model_is_compiled_whole(adapter: Adapter) -> None:
    torch._dynamo.reset()
    ours = model(NAME)
    step = torch.compile(ours, backend="eager", fullgraph=True)

    with torch.no_grad():
        for length in (17, 33, 40):
            torch.testing.assert_close(step(tokens(length)).logits, ours(tokens(length)).logits)


# ------------------------------------------------------------------ what is refused
def test_padding_is_refused(adapter: Adapter) -> None:
    words = tokens()
    mask = torch.ones_like(words)
    mask[0, :3] = 0

    with torch.no_grad(), pytest.raises(LaunchError, match="no padding") as caught:
        model(NAME)(words, mask)
    assert "one length" in caught.value.hint


def test_packed_sequences_are_refused(adapter: Adapter) -> None:
    positions = torch.cat([torch.arange(20), torch.arange(13)])[None].expand(2, -1)

    with torch.no_grad(), pytest.raises(LaunchError, match="neither causal nor full"):
        model(NAME)(tokens(), position_ids=positions, use_cache=False)


def test_a_window_shorter_than_the_keys_is_refused(adapter: Adapter) -> None:
    with torch.no_grad(), pytest.raises(LaunchError, match="a window"):
        model(NAME, kind="Mistral", sliding_window=16)(tokens())

    q = torch.randn(1, HEADS, 20, HEAD_DIM).bfloat16()
    with pytest.raises(LaunchError, match="window of 16"):
        adapter.attention(torch.nn.Module(), q, q[:, :KEY_HEADS], q[:, :KEY_HEADS], sliding_window=16)


def test_a_static_cache_is_refused(adapter: Adapter) -> None:
    ours = model(NAME)

    with torch.no_grad(), pytest.raises(LaunchError, match="static cache"):
        ours(tokens(), **{CACHE: transformers.StaticCache(config=ours.config, max_cache_len=64)})


def test_a_mask_of_ones_own_is_refused(adapter: Adapter) -> None:
    mask = torch.ones(2, 1, 33, 33, dtype=torch.bool).tril()
    mask[1, 0, 30, 4] = False

    with torch.no_grad(), pytest.raises(LaunchError, match="neither causal nor without effect"):
        model(NAME)(tokens(), mask)


def test_a_bias_is_no_mask() -> None:
    with pytest.raises(LaunchError, match="neither causal nor without effect"):
        is_causal_mask(torch.zeros(1, 1, 4, 4).masked_fill(~torch.ones(4, 4).bool().tril(), -1.0), 4, 4)


def test_training_is_refused(adapter: Adapter) -> None:
    with pytest.raises(LaunchError, match="requires grad"):
        model(NAME)(tokens())
    with torch.no_grad(), pytest.raises(LaunchError, match="no dropout") as caught:
        model(NAME, attention_dropout=0.1).train()(tokens())
    assert "model.eval()" in caught.value.hint


@pytest.mark.parametrize("argument", ["s_aux", "position_bias", "cu_seq_lens_q", "output_attentions", "cache"])
def test_what_changes_the_result_is_refused_by_name(adapter: Adapter, argument: str) -> None:
    q = torch.randn(1, HEADS, 3, HEAD_DIM).bfloat16()

    with pytest.raises(LaunchError) as caught:
        adapter.attention(torch.nn.Module(), q, q[:, :KEY_HEADS], q[:, :KEY_HEADS], **{argument: torch.ones(1)})
    assert caught.value.details["argument"] == argument


def test_a_configuration_without_a_bundle_is_named(adapter: Adapter) -> None:
    with (
        torch.no_grad(),
        pytest.raises(LaunchError, match=r"4/2 heads, head dim 64/64, torch.float32, causal") as caught,
    ):
        model(NAME).float()(tokens())
    assert "4/2 heads, head dim 64/64, torch.bfloat16, causal" in caught.value.hint


@pytest.mark.parametrize(
    "spec",
    [None, [], {"Hq": 4, "mask": "window:8"}, {"Hq": 4, "score": "score + h"}, {"Hq": 4, "Sk": 8}, {"nonsense": 1}],
)
def test_a_bundle_that_serves_no_model_is_refused(bundle: Callable[..., OnTheCpu], spec: Any) -> None:
    made = bundle(spec=[] if spec is None else spec)

    with pytest.raises(BundleError, match="serves no model"):
        register(made, name=NAME)


def test_an_old_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformers.masking_utils, "causal_mask_function")

    with pytest.raises(EnvironmentMissing, match="transformers 5"):
        register(name=NAME)


# ------------------------------------------------------------------ made when they are asked for
def test_a_kernel_is_generated_once(
    bundle: Callable[..., OnTheCpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qimeng_attention import workflow

    asked = []

    def generate(spec: Any, *, target: str, out: Path) -> Bundle:
        asked.append((spec, target, out))
        return bundle("generated")

    monkeypatch.setattr(workflow, "generate", generate)
    register(name=NAME, generate_in=tmp_path / "kernels", target="A100")

    with torch.no_grad():
        model(NAME)(tokens())

    ((spec, target, out),) = asked
    assert (spec.Hq, spec.Hk, spec.Dqk, spec.mask, spec.dtype, target) == (4, 2, 64, "causal", "bf16", "A100")
    assert out.parent == tmp_path / "kernels"
    assert "4_2" in out.name


def test_a_configuration_and_its_description_agree(bundle: Callable[..., OnTheCpu]) -> None:
    configuration = configuration_of(bundle(softcap=20.0))

    spec = spec_of(configuration)

    assert (spec.Hq, spec.Hk, spec.softcap, spec.mask) == (HEADS, KEY_HEADS, 20.0, "causal")
    with pytest.raises(LaunchError, match="no kernel is made for"):
        spec_of(configuration._replace(dtype="torch.float32"))
