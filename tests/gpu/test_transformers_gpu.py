"""A small random Llama on a real GPU, with kernels that are generated for it when it first asks.

Where nothing can be generated, QIMENG_TEST_BUNDLES/transformers holds those of `make_bundles.py --set transformers`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.build import find_toolchain
from qimeng_attention.errors import EnvironmentMissing, LaunchError
from qimeng_attention.workflow import find_target

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # what other libraries warn of is not ours
NAME = "qimeng_gpu_test"
VARIABLE = "QIMENG_TEST_BUNDLES"
# Of a model in bf16, against the same weights in float32: no further than twice what PyTorch's own attention is.
TIMES_SDPA, FLOOR = 2.0, 1e-3


@pytest.fixture(scope="session")
def transformers(torch: Any) -> Any:
    return pytest.importorskip("transformers", reason="needs pip install 'qimeng-attention[transformers]'")


@pytest.fixture(scope="session")
def kernels(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Register an implementation, and give the folder that it makes kernels in; None where they were made before."""
    from qimeng_attention.integrations.transformers import register

    before = Path(os.environ.get(VARIABLE) or "nowhere") / "transformers"
    made = sorted(path.parent for path in before.glob("*/manifest.json"))
    folder = None if made else tmp_path_factory.mktemp("kernels")
    try:
        if folder is not None:
            find_target("auto", None)
            find_toolchain()
        register(*made, name=NAME, generate_in=folder)
    except EnvironmentMissing as missing:
        pytest.skip(f"needs {missing.message}; or set {VARIABLE} to a folder with transformers/")
    return folder


@pytest.fixture
def model(torch: Any, transformers: Any, kernels: Path | None) -> Callable[..., Any]:
    torch._dynamo.reset()

    def make(implementation: str, *, head_dim: int = 128, dtype: Any = None, **changed: Any) -> Any:
        config = transformers.LlamaConfig(
            vocab_size=512,
            hidden_size=8 * head_dim,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=head_dim,
            max_position_embeddings=1024,
            attn_implementation=implementation,
            **changed,
        )
        torch.manual_seed(0)
        made = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        return made.to("cuda", dtype or torch.bfloat16).eval()

    return make


def tokens(torch: Any, length: int = 257, batch: int = 2) -> Any:
    generator = torch.Generator(device="cuda").manual_seed(1)
    return torch.randint(512, (batch, length), generator=generator, device="cuda")


def assert_near(torch: Any, found: Any, peer: Any, truth: Any) -> None:
    ours, theirs = ((x.float() - truth).abs().max().item() for x in (found, peer))
    assert ours <= TIMES_SDPA * theirs + FLOOR, f"{ours:.4g} from float32, SDPA {theirs:.4g}"


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("causal", [True, False])
def test_logits_are_those_of_sdpa(torch: Any, model: Callable[..., Any], head_dim: int, causal: bool) -> None:
    words = tokens(torch)

    with torch.no_grad():
        found, peer = (model(name, head_dim=head_dim)(words, is_causal=causal).logits for name in (NAME, "sdpa"))
        truth = model("eager", head_dim=head_dim, dtype=torch.float32)(words, is_causal=causal).logits

    assert_near(torch, found, peer, truth)


def test_decoding_continues_a_prefill(torch: Any, model: Callable[..., Any]) -> None:
    words, logits = tokens(torch), {}

    with torch.no_grad():
        for name in (NAME, "sdpa"):
            made = model(name)
            taken = inspect.signature(made.forward).parameters
            cache = "cache" if "cache" in taken else "past_key_values"  # newer versions call it by another name
            begun = made(words[:, :200], use_cache=True)
            steps = [begun.logits]
            for place in range(200, 208):
                step = made(words[:, place : place + 1], use_cache=True, **{cache: begun.past_key_values})
                steps.append(step.logits)
            logits[name] = torch.cat(steps, dim=1)
        truth = model("eager", dtype=torch.float32)(words[:, :208]).logits

    assert_near(torch, logits[NAME], logits["sdpa"], truth)


def test_a_compiled_model_gives_the_same(torch: Any, model: Callable[..., Any]) -> None:
    ours, peer, exact = model(NAME), model("sdpa"), model("eager", dtype=torch.float32)

    with torch.no_grad():
        ours(tokens(torch))  # a kernel is made before tracing
        step = torch.compile(ours, fullgraph=True)
        for length in (257, 300, 130):
            words = tokens(torch, length)
            assert_near(torch, step(words).logits, peer(words).logits, exact(words).logits)


def test_a_kernel_is_kept_for_the_next_process(torch: Any, model: Callable[..., Any], kernels: Path | None) -> None:
    from qimeng_attention.integrations.transformers import register

    if kernels is None:
        pytest.skip("the kernels were made before")
    with torch.no_grad():
        expected = model(NAME)(tokens(torch)).logits
        before = {path: path.stat().st_mtime_ns for path in kernels.glob("*/manifest.json")}
        register(name=NAME, generate_in=kernels)
        again = model(NAME)(tokens(torch)).logits

    assert before
    assert {path: path.stat().st_mtime_ns for path in kernels.glob("*/manifest.json")} == before
    assert torch.equal(again, expected)


def test_training_is_refused(torch: Any, model: Callable[..., Any]) -> None:
    with pytest.raises(LaunchError, match="requires grad"):
        model(NAME)(tokens(torch))
