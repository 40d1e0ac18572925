"""The reference on a GPU gives what the reference in NumPy gives; skipped where there is no PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from qimeng_attention.judge import Call, Operator, reference
from qimeng_attention.judge.families import FAMILIES
from qimeng_attention.judge.inputs import CPU, Case, values
from qimeng_attention.judge.meaning import own_sizes_of
from qimeng_attention.spec import AttentionSpec

pytest.importorskip("torch")

SPECS = {
    "causal": {"mask": "causal"},
    "soft cap": {"mask": "window:20,3", "softcap": 30},
    "ALiBi": {"mask": "causal", "score": "score - exp2(-8*(h+1)/Hq) * (q_idx + Sk - Sq - kv_idx)", "Dv": 32},
    "functions": {
        "mask": "q_idx // 50 == kv_idx // 50 and not (kv_idx == 7) or 0 <= kv_idx - b < 9",
        "score": "where(kv_idx % 2 == 0, score, min(score, 3) * 2) + sigmoid(score) - clamp(abs(score), 1, 2) / 7",
        "dtype": "fp16",
    },
    "sinks": {"mask": "window:20", "weights": "softmax+sink", "softcap": 30},
    "softmax1": {"mask": "causal", "weights": "softmax1", "dtype": "fp16"},
    "sigmoid": {"mask": "causal", "weights": "sigmoid", "score": "score - ln(Sk)"},
    "relu2": {"mask": "window:20", "weights": "relu2", "dtype": "fp16"},
    "linear": {"mask": "causal", "weights": "linear", "score": "score * exp2((kv_idx - q_idx) / 8)"},
    "named tensors": {
        "mask": "doc[b, q_idx + Sk - Sq] == doc[b, kv_idx] or gate[kv_idx]",
        "score": "score * gain[h] + table[h, clamp(kv_idx - q_idx, -40, 40) + 40]",
        "tensors": {
            "doc": {"dims": ["B", "Sk"], "dtype": "i64"},
            "gate": {"dims": [50], "dtype": "bool"},
            "gain": {"dims": ["Hq"], "dtype": "f32"},
            "table": {"dims": ["Hq", "N"], "dtype": "bf16"},
        },
    },
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("family", ["normal", "needles", "logits near -60000"])
@pytest.mark.parametrize("lengths", [(70, 90), (33, 5), (3, 0)])
def test_both_references_agree(name: str, family: str, lengths: tuple[int, int]) -> None:
    from qimeng_attention.judge import reference_torch

    spec = AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": 64, **SPECS[name]})
    operator = Operator.of(spec)
    own = own_sizes_of(spec, 3)
    call = Call(2, *lengths, spec.Hq, spec.Hk, spec.Dqk, spec.Dv, spec.default_scale, own)
    x = values(Case("case", call, family), operator, spec.dtype, 1)
    operator = operator.bind(x)
    arguments = (operator, call, x["Q"], x["K"], x["V"])

    mine, other = reference.truth(*arguments), reference_torch.truth(*arguments)

    for field in ("out", "lse", "magnitude", "spread", "slack", "drift", "seen"):
        np.testing.assert_allclose(getattr(other, field), getattr(mine, field), rtol=1e-9, atol=1e-9)
    plain, torch_plain = reference.baseline(*arguments, spec.dtype), reference_torch.baseline(*arguments, spec.dtype)
    error, torch_error = (np.abs(b - mine.out).max(initial=0) for b in (plain, torch_plain))
    assert torch_error <= 2 * error + 1e-6
    assert error <= 2 * torch_error + 1e-6


def test_the_families_above_exist() -> None:
    assert {"normal", "needles", "logits near -60000"} <= set(FAMILIES)
    assert CPU.keys > 90
