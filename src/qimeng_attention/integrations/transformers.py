"""Hugging Face transformers: kernels as an attention implementation of its models.

    from qimeng_attention.integrations.transformers import register

    register("out/llama")                                   # bundles, one for each head configuration
    register(generate_in="kernels", target="H200")          # or: made when a model first asks for one
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="qimeng", dtype=torch.bfloat16)

Forward only, with a causal mask or none, any number of key heads, and lengths aligned at their ends, as in prefill and
decoding with a growing cache. Queries, keys and values are read where they are: no copy, no repeated heads. What cannot
be done right is a LaunchError, as early as transformers asks for the mask: padding, packed sequences, a window shorter
than the keys, a static cache, masks of one's own, dropout, gradients.

Not here: the operator (runtime/operator.py), making bundles (workflow/).
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

from qimeng_attention.errors import BundleError, EnvironmentMissing, LaunchError, SpecError
from qimeng_attention.runtime import Bundle, load
from qimeng_attention.runtime.manifest import MANIFEST
from qimeng_attention.runtime.operator import Operator
from qimeng_attention.runtime.plan import TORCH_TYPES
from qimeng_attention.spec import CAUSAL, AttentionSpec

INSTALL = "pip install 'qimeng-attention[transformers]'"
_SPEC_TYPES = {f"torch.{known}": dtype for dtype, known in TORCH_TYPES.items() if dtype in ("bf16", "fp16")}
# Arguments of transformers' attention functions that change what is computed, beyond those that are handled here.
_REFUSED = {
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
    "head_mask": "a head mask",
    "cache": "a paged cache",
    "cu_seq_lens_q": "packed sequences",
    "cu_seq_lens_k": "packed sequences",
    "cu_seqlens_q": "packed sequences",
    "cu_seqlens_k": "packed sequences",
    "block_table": "a paged cache",
}


class Configuration(NamedTuple):
    """What a kernel is chosen by."""

    Hq: int
    Hk: int
    Dqk: int
    Dv: int
    dtype: str  # as PyTorch writes it, "torch.bfloat16"
    causal: bool
    softcap: float | None

    def __str__(self) -> str:
        mask = "causal" if self.causal else "full"
        cap = "" if self.softcap is None else f", soft cap {self.softcap:g}"
        return f"{self.Hq}/{self.Hk} heads, head dim {self.Dqk}/{self.Dv}, {self.dtype}, {mask}{cap}"


def register(
    *bundles: Bundle | str | os.PathLike[str],
    name: str = "qimeng",
    generate_in: str | os.PathLike[str] | None = None,
    target: str = "auto",
) -> Adapter:
    """Register kernels under a name that transformers takes as `attn_implementation`; a second call replaces the first.

    Args:
        bundles: loaded ones, or their folders.
        name: of the implementation.
        generate_in: a folder; a kernel for a configuration that no bundle serves is generated there on its first use,
            and taken from there ever after. None: such a use is refused.
        target: the GPU to generate for.

    Raises:
        EnvironmentMissing: no PyTorch, or no transformers of a version with these interfaces.
        BundleError: a bundle that is damaged, or one whose operator no model asks for.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import bidirectional_mask_function, causal_mask_function
    except ImportError as error:
        raise EnvironmentMissing(f"transformers 5.4 or later is needed ({error})", hint=INSTALL) from None
    folder = None if generate_in is None else Path(generate_in)
    adapter = Adapter(causal_mask_function, bidirectional_mask_function, folder, target)
    for bundle in bundles:
        adapter.add(bundle if isinstance(bundle, Bundle) else load(bundle))
    AttentionInterface.register(name, adapter.attention)
    AttentionMaskInterface.register(name, adapter.mask)
    return adapter


class Adapter:
    """The kernels of one implementation, and the two functions that transformers calls."""

    def __init__(self, causal: Any, bidirectional: Any, folder: Path | None, target: str) -> None:
        """Begin with no kernel; the functions are transformers' own masks, known by identity."""
        self._causal, self._bidirectional = causal, bidirectional
        self._folder, self._target = folder, target
        self._operators: dict[Configuration, Operator] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Adapter for {'; '.join(str(c) for c in self._operators) or 'no configuration'}>"

    def add(self, bundle: Bundle) -> Configuration:
        """Serve a configuration by a bundle.

        Raises:
            BundleError: an operator that no model asks for.
        """
        configuration = configuration_of(bundle)
        self._operators[configuration] = bundle.operator()
        return configuration

    # -------------------------------------------------------------- masks
    def mask(
        self,
        batch_size: int,
        q_length: int,
        kv_length: int,
        q_offset: Any = 0,
        kv_offset: int = 0,
        mask_function: Any = None,
        attention_mask: Any = None,  # (B, keys) bool: where there is no padding
        local_size: int | None = None,
        **more: Any,
    ) -> None:
        """Give no mask: the kernels have their own; refuse where that would be another one.

        Raises:
            LaunchError: the model asks for what the kernels do not compute.
        """
        causal = mask_function is None or mask_function is self._causal
        # A window, or a chunk, that holds every key is the causal mask, where transformers lets a mask be left out.
        local = local_size is not None and kv_length < local_size and bool(more.get("allow_is_causal_skip"))
        if not (causal or local or mask_function is self._bidirectional):
            raise _refused(
                "the model asks for a mask that is neither causal nor full (a window, packed sequences, its own)",
                "take attn_implementation='sdpa' for it, or give past_key_values if nothing is packed",
                "attention_mask",
            )
        if mask_function is not self._bidirectional:
            _check_ends(q_length, kv_length, q_offset, kv_offset)
        if attention_mask is not None:
            _check_padding(attention_mask, kv_length)

    # -------------------------------------------------------------- attention
    def attention(
        self,
        module: Any,
        query: Any,  # (B, Hq, Sq, Dqk)
        key: Any,  # (B, Hk, Sk, Dqk)
        value: Any,  # (B, Hk, Sk, Dv)
        attention_mask: Any = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        **more: Any,
    ) -> tuple[Any, None]:
        """Compute attention, (B, Sq, Hq, Dv); there are no weights to give.

        Raises:
            LaunchError: what no kernel does, or none of these.
        """
        _check_arguments(dropout, more)
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        if attention_mask is not None:
            causal = is_causal_mask(attention_mask, query.shape[2], key.shape[2])
        elif sliding_window is not None and key.shape[2] > sliding_window:
            raise _refused(
                f"{key.shape[2]} keys are more than the window of {sliding_window}",
                "take attn_implementation='sdpa' for this model, or shorter inputs",
                "sliding_window",
            )
        configuration = Configuration(
            query.shape[1], key.shape[1], query.shape[3], value.shape[3], str(query.dtype), causal, softcap
        )
        operator = self._operators.get(configuration)
        if operator is None:
            operator = self._made(configuration)
        q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # views: (B, S, H, D)
        return operator(q, k, v, scale=scaling), None

    def _made(self, configuration: Configuration) -> Operator:
        """Find a kernel in the folder, or generate it there."""
        import torch

        if self._folder is None:
            hint = f"register a bundle for it, or generate_in=FOLDER; served: {self!r}"
            raise _refused(f"no bundle serves {configuration}", hint, "bundles")
        if torch.compiler.is_compiling():
            hint = "call the model once before it is compiled, or register its bundle"
            raise _refused(f"no kernel serves {configuration} yet, and none is made while tracing", hint, "bundles")
        with self._lock:
            if configuration not in self._operators:
                self._operators[configuration] = _bundle_for(configuration, self._folder, self._target).operator()
            return self._operators[configuration]


def configuration_of(bundle: Bundle) -> Configuration:
    """Say which configuration a bundle serves.

    Raises:
        BundleError: none that a model asks for: a score modifier, another mask, other weights, a fixed length, or no
            description.
    """
    fields = json.loads(bundle.files["spec.json"])
    try:
        if not isinstance(fields, dict):
            raise SpecError("it has no description")
        spec = AttentionSpec.make(**fields)
        if spec.condition not in (None, CAUSAL) or spec.score.strip() != "score":
            raise SpecError("its mask is neither causal nor full, or it modifies scores")
        if spec.weights != "softmax":
            raise SpecError(f"its weights are {spec.weights}")
        if (spec.B, spec.Sq, spec.Sk) != (None, None, None):
            raise SpecError("its lengths are fixed")
    except SpecError as error:
        raise BundleError(
            f"{bundle.path} serves no model of transformers: {error.message}",
            hint="generate one with mask causal or full and nothing but a soft cap",
            file=str(bundle.path),
        ) from None
    dtype = f"torch.{TORCH_TYPES[spec.dtype]}"
    return Configuration(spec.Hq, spec.Hk, spec.Dqk, spec.Dv, dtype, spec.condition is not None, spec.softcap)


def spec_of(configuration: Configuration) -> AttentionSpec:
    """Describe the operator of a configuration.

    Raises:
        LaunchError: a type that kernels do not have.
        SpecError: sizes that make no sense.
    """
    c = configuration
    if c.dtype not in _SPEC_TYPES:
        hint = "load the model with dtype=torch.bfloat16 or torch.float16"
        raise _refused(f"no kernel is made for {c.dtype}", hint, "dtype")
    mask, dtype = "causal" if c.causal else "full", _SPEC_TYPES[c.dtype]
    return AttentionSpec.make(Hq=c.Hq, Hk=c.Hk, Dqk=c.Dqk, Dv=c.Dv, dtype=dtype, mask=mask, softcap=c.softcap)


def _bundle_for(configuration: Configuration, folder: Path, target: str) -> Bundle:
    from qimeng_attention.workflow import find_target, generate

    spec = spec_of(configuration)
    cap = "" if spec.softcap is None else f"_{spec.softcap!r}"
    path = folder / f"{spec.kernel_name}{cap}_{spec.Hq}_{spec.Hk}.{find_target(target, None)[0].name}"
    if not path.exists():
        try:
            return generate(spec, target=target, out=path)
        except BundleError:  # another process may have written it meanwhile
            if not (path / MANIFEST).is_file():
                raise
    return load(path)


# ------------------------------------------------------------------ checks
def _refused(problem: str, hint: str, argument: str) -> LaunchError:
    return LaunchError(problem, hint=hint, argument=argument)


def _check_ends(q_length: int, kv_length: int, q_offset: Any, kv_offset: int) -> None:
    """Check that the last query stands at the last key, where the kernels have it."""
    if not isinstance(q_offset, int) or q_offset + q_length != kv_offset + kv_length:
        raise _refused(
            "the last query does not stand at the last key: a static cache, or keys of the future",
            "use a cache that grows, such as DynamicCache",
            "past_key_values",
        )


def _check_padding(mask: Any, kv_length: int) -> None:
    import torch

    if torch.compiler.is_compiling():
        hint = "leave attention_mask out where nothing is padded"
        raise _refused("whether a mask holds padding cannot be read while tracing", hint, "attention_mask")
    if mask.shape[-1] < kv_length or not bool(mask[:, -kv_length:].all()):
        hint = "batch inputs of one length, and leave attention_mask out"
        raise _refused("the kernels know no padding", hint, "attention_mask")


def _check_arguments(dropout: float, more: dict[str, Any]) -> None:
    if dropout:
        raise _refused(f"the kernels know no dropout, and {dropout} is asked for", "call model.eval()", "dropout")
    if more.get("output_attentions"):
        hint = "take attn_implementation='eager' to see them"
        raise _refused("the kernels keep no attention weights", hint, "output_attentions")
    for argument, words in _REFUSED.items():
        if more.get(argument) is not None:
            raise _refused(
                f"the kernels know no {words.removeprefix('a ')}", "take attn_implementation='sdpa'", argument
            )


def is_causal_mask(mask: Any, seqlen_q: int, seqlen_k: int) -> bool:
    """Tell whether a mask, (B or 1, H or 1, Sq, Sk), is causal (True) or hides nothing (False).

    It is read from the GPU at each call: leave masks out where they say nothing.

    Raises:
        LaunchError: it is neither.
    """
    import torch

    if torch.compiler.is_compiling():
        raise _refused("a mask cannot be read while tracing", "leave attention_mask out", "attention_mask")
    if mask.dim() != 4 or tuple(mask.shape[2:]) != (seqlen_q, seqlen_k):
        raise _refused(
            f"a mask of shape {tuple(mask.shape)} is not (B, H, {seqlen_q}, {seqlen_k})",
            "leave attention_mask out",
            "attention_mask",
        )
    seen = mask if mask.dtype == torch.bool else mask == 0
    clean = seen if mask.dtype == torch.bool else seen | (mask <= torch.finfo(mask.dtype).min)
    if mask.dtype == torch.bool or bool(clean.all()):
        if bool(seen.all()):
            return False
        causal = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool, device=mask.device).tril(seqlen_k - seqlen_q)
        if bool((seen == causal).all()):
            return True
    raise _refused(
        "the mask is neither causal nor without effect", "take attn_implementation='sdpa' for it", "attention_mask"
    )
