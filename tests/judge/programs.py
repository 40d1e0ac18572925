"""A causal GQA program, and edits of it: right programs for other specs, and planted bugs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qimeng_attention.judge import CPU

SHIPPED = Path(__file__).parents[2] / "docs/design/programs/gqa_causal.tl"

SHORT = replace(CPU, keys=600)  # without the long sequences, for tests of something else

CODE = """Kernel gqa_causal for a100
Size B, Sq, Sk, Hq, Hk
Size D = 64
Scalar scale f32 > 0
Tile BM = 64, BN = 32
Grid block = 0 : ceildiv(Sq, BM), head = 0 : Hq, batch = 0 : B
Allocate Q in global (B, Sq, Hq, D) bf16
Allocate K in global (B, Sk, Hk, D) bf16
Allocate V in global (B, Sk, Hk, D) bf16
Allocate Out in global (B, Sq, Hq, D) bf16
Allocate Lse in global (B, Hq, Sq) f32
Allocate S in register (BM q, BN k) f32
Allocate O in register (BM q, D) f32 = 0
Allocate m in register (BM q) f32 = -inf
Allocate l in register (BM q) f32 = 0
Copy Q (BM, D) in coordinate [batch, q = block * BM, head] from global to shared
for i = 0 : ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)
    Copy K (BN, D) in coordinate [batch, k = i * BN, head // (Hq // Hk)] from global to shared
    Compute GEMM Q, K.T and get S
    Compute Mask S where k <= q + Sk - Sq and k < Sk
    Compute max(m, RowMax(S)) and get m_new
    Compute where(m_new == -inf, 0, m_new) and get m_safe
    Compute exp2(m * scale * log2e - m_safe * scale * log2e) and get alpha
    Compute exp2(S * scale * log2e - m_safe * scale * log2e) and get new S
    Compute l * alpha + RowSum(S) and get new l
    Compute O * alpha and get new O
    Compute m_new and get new m
    Copy V (BN, D) in coordinate [batch, k = i * BN, head // (Hq // Hk)] from global to shared
    Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P
    Compute GEMM P, V and accumulate O
end
Compute where(l == 0, 0, O / l) and get new O
Copy O (BM, D) in coordinate [batch, q = block * BM, head] from register to global Out
Compute where(l == 0, -inf, m * scale + ln(l)) and get lse
Copy lse (BM) in coordinate [batch, head, q = block * BM] from register to global Lse
"""
MASK = "    Compute Mask S where k <= q + Sk - Sq and k < Sk\n"
LOOP = "for i = 0 : ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)"
WHOLE_LOOP = "for i = 0 : ceildiv(Sk, BN)"
LSE = "Compute where(l == 0, -inf, m * scale + ln(l)) and get lse"
WEIGHTS = "exp2(S * scale * log2e - m_safe * scale * log2e)"
RESCALE = "exp2(m * scale * log2e - m_safe * scale * log2e)"
K_PLACE = "Copy K (BN, D) in coordinate [batch, k = i * BN, head // (Hq // Hk)]"
V_PLACE = "Copy V (BN, D) in coordinate [batch, k = i * BN, head // (Hq // Hk)]"
O_PLACE = "Copy O (BM, D) in coordinate [batch, q = block * BM, head]"

TANH_MEAN = """Kernel tanh_mean for a100
Size B, Sq, Sk, Hq, Hk
Size D = 64
Scalar scale f32
Tile BM = 64, BN = 64
Grid block = 0 : ceildiv(Sq, BM), head = 0 : Hq, batch = 0 : B
Allocate Q in global (B, Sq, Hq, D) bf16
Allocate K in global (B, Sk, Hk, D) bf16
Allocate V in global (B, Sk, Hk, D) bf16
Allocate Out in global (B, Sq, Hq, D) bf16
Allocate O in register (BM q, D) f32 = 0
Allocate n in register (BM q) f32 = 0
Copy Q (BM, D) in coordinate [batch, q = block * BM, head] from global to shared
for i = 0 : ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)
    Copy K (BN, D) in coordinate [batch, k = i * BN, head // (Hq // Hk)] from global to shared
    Compute GEMM Q, K.T and get S
    Compute S * 0 + 1 and get C
    Compute Mask C where k <= q + Sk - Sq and k < Sk else 0
    Compute n + RowSum(C) and get new n
    Compute tanh(S * scale) and get new S
    Compute Mask S where k <= q + Sk - Sq and k < Sk else 0
    Copy V (BN, D) in coordinate [batch, k = i * BN, head // (Hq // Hk)] from global to shared
    Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P
    Compute GEMM P, V and accumulate O
end
Compute where(n == 0, 0, O / n) and get new O
Copy O (BM, D) in coordinate [batch, q = block * BM, head] from register to global Out
"""


def edit(text: str, *changes: tuple[str, str]) -> str:
    """Replace the first occurrence of each old text, which must be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def with_mask(condition: str, loop: str = WHOLE_LOOP) -> str:
    """Give the program for another mask."""
    return edit(CODE, (MASK, f"    Compute Mask S where {condition}\n"), (LOOP, loop))


def with_score(expression: str, mask: str = "k <= q + Sk - Sq and k < Sk", loop: str = LOOP) -> str:
    """Give the program for another score; the expression makes it of S, which holds the plain products."""
    text = with_mask(mask, loop).replace("* scale * log2e", "* log2e")
    line = f"    Compute Mask S where {mask}\n"
    modified = f"    Compute {expression} and get new S\n{line}"
    return edit(text, (line, modified), (LSE, LSE.replace("m * scale", "m")))


CONSTANT = "0.125 * log2e"  # the default scale of D = 64, whatever the call says

# What is wrong, and the edits that make it so; the checker must refuse the program or the judge reject it.
BUGS: dict[str, tuple[tuple[str, str], ...]] = {
    "no mask": ((MASK, "    Compute Mask S where k < Sk\n"),),
    "mask k < q": (("k <= q + Sk - Sq", "k < q + Sk - Sq"),),
    "mask aligned at the start": (("k <= q + Sk - Sq", "k <= q"), (LOOP, WHOLE_LOOP)),
    "mask one too wide": (("k <= q + Sk - Sq", "k <= q + Sk - Sq + 1"), (LOOP, WHOLE_LOOP)),
    "mask fills 0": (("and k < Sk\n", "and k < Sk else 0\n"),),
    "mask hides the last key": (("k < Sk\n", "k < Sk - 1\n"),),
    "O is not rescaled": (("    Compute O * alpha and get new O\n", ""),),
    "l is not rescaled": (("l * alpha + RowSum(S)", "l + RowSum(S)"),),
    "no maximum subtracted": ((WEIGHTS, "exp2(S * scale * log2e)"),),
    "maximum of this tile only": (("max(m, RowMax(S))", "RowMax(S)"),),
    "maximum is never kept": (("    Compute m_new and get new m\n", ""),),
    "stale maximum": ((WEIGHTS, WEIGHTS.replace("m_safe", "where(m == -inf, 0, m)")),),
    "no guard for rows without a key": (("where(m_new == -inf, 0, m_new)", "m_new + 0"),),
    "sentinel for -inf": (("where(m_new == -inf, 0, m_new)", "max(m_new, -1e4)"),),
    "scale left out": ((WEIGHTS, WEIGHTS.replace(" * scale", "")),),
    "scale of the call ignored": (
        (WEIGHTS, WEIGHTS.replace("scale * log2e", CONSTANT)),
        (RESCALE, RESCALE.replace("scale * log2e", CONSTANT)),
    ),
    "base 2 for e": ((WEIGHTS, WEIGHTS.replace(" * log2e", "")),),
    "temperature off by 2 %": ((WEIGHTS, "exp2((S - m_safe) * scale * log2e * 1.02)"),),
    "head map interleaved": ((K_PLACE, K_PLACE.replace("head // (Hq // Hk)", "head % Hk")),),
    "values of the first head": ((V_PLACE, V_PLACE.replace("head // (Hq // Hk)", "0")),),
    "keys of the first batch entry": ((K_PLACE, K_PLACE.replace("[batch", "[0")),),
    "first tile skipped": ((LOOP, LOOP.replace("0 :", "1 :", 1)),),
    "last tile skipped": ((LOOP, "for i = 0 : clamp((block + 1) * BM + Sk - Sq, 0, Sk) // BN"),),
    "first tile visited twice": (
        (LOOP, LOOP.replace("0 : ", "0 : 1 + ", 1)),
        (K_PLACE, K_PLACE.replace("i * BN", "max(i - 1, 0) * BN")),
        (V_PLACE, V_PLACE.replace("i * BN", "max(i - 1, 0) * BN")),
    ),
    "values one tile ahead": ((V_PLACE, V_PLACE.replace("i * BN", "(i + 1) * BN")),),
    "values at swapped coordinates": (
        (V_PLACE, V_PLACE.replace("[batch, k = i * BN, head // (Hq // Hk)]", "[head, k = i * BN, batch]")),
    ),
    "keys for values": (("GEMM P, V", "GEMM P, K"),),
    "weights not normalised": (("where(l == 0, 0, O / l)", "where(l == 0, 0, O)"),),
    "0 / 0 for rows without a key": (("where(l == 0, 0, O / l)", "O / l"),),
    "sum of squared weights": (("RowSum(S)", "RowSum(S * S)"),),
    "LSE without the maximum": ((LSE, LSE.replace("m * scale + ", "")),),
    "LSE in base 2": ((LSE, LSE.replace("m * scale + ln(l)", "m * scale * log2e + log2(l)")),),
    "LSE of unscaled scores": ((LSE, LSE.replace("m * scale", "m")),),
    "LSE finite for rows without a key": ((LSE, LSE.replace("-inf", "-1e30")),),
    "heads stored in reverse": ((O_PLACE, O_PLACE.replace("head]", "Hq - 1 - head]")),),
    "last block not stored": (("ceildiv(Sq, BM)", "Sq // BM"),),
    "P in the wrong type": (("as bf16 and get P", "as fp16 and get P"),),
    "transpose left out": (("GEMM Q, K.T", "GEMM Q, K"),),
}
