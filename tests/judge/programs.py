"""The causal GQA program of the design pages, and edits of it: right programs for other specs, and planted bugs."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "docs/design/programs/gqa_causal.tl"

CODE = """Kernel gqa_causal for a100
Size B, Sq, Sk, Hq, Hk
Size D = 128
Scalar scale f32 > 0
Tile BM = 128, BN = 64
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
SCHEDULE = """
Schedule
    ring K stages 1, V stages 1
    prefetch K 1 ahead, V 0 ahead
    sums per lane
    store O through shared over Q
    copies async
    split loop i where Mask is not all true
    warps 4 along q, 2 blocks an SM
    grid longest first
"""
MASK = "    Compute Mask S where k <= q + Sk - Sq and k < Sk\n"
LOOP = "for i = 0 : ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)"
WHOLE_LOOP = "for i = 0 : ceildiv(Sk, BN)"
LSE = "Compute where(l == 0, -inf, m * scale + ln(l)) and get lse"
HEADS = "head // (Hq // Hk)"


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
    return edit(text, (line, f"    Compute {expression} and get new S\n{line}"), (LSE, LSE.replace("m * scale", "m")))


# name: the edits that plant the bug; each must be refused by the checker or rejected by the judge.
BUGS: dict[str, tuple[tuple[str, str], ...]] = {
    "no mask": ((MASK, "    Compute Mask S where k < Sk\n"),),
    "mask k < q": (("k <= q + Sk - Sq", "k < q + Sk - Sq"),),
    "mask aligned at the start": (("k <= q + Sk - Sq", "k <= q"), (LOOP, WHOLE_LOOP)),
    "mask one too wide": (("k <= q + Sk - Sq", "k <= q + Sk - Sq + 1"), (LOOP, WHOLE_LOOP)),
    "mask fills 0": (("and k < Sk\n", "and k < Sk else 0\n"),),
    "mask before the end of the keys": (("k < Sk\n", "k < Sk - 1\n"),),
    "O is not rescaled": (("    Compute O * alpha and get new O\n", ""),),
    "l is not rescaled": (("l * alpha + RowSum(S)", "l + RowSum(S)"),),
    "no maximum subtracted": (("- m_safe * scale * log2e) and get new S", ") and get new S"), ("S * scale * log2e )", "S * scale * log2e)")),
    "maximum of this tile only": (("Compute max(m, RowMax(S))", "Compute RowMax(S)"),),
    "maximum is never stored": (("    Compute m_new and get new m\n", ""),),
    "stale maximum": (("exp2(S * scale * log2e - m_safe * scale * log2e)", "exp2(S * scale * log2e - where(m == -inf, 0, m) * scale * log2e)"),),
    "no guard for rows without a key": (("Compute where(m_new == -inf, 0, m_new) and get m_safe", "Compute m_new + 0 and get m_safe"),),
    "sentinel instead of -inf": (("Compute where(m_new == -inf, 0, m_new)", "Compute max(m_new, -1e4)"),),
    "scale left out": (("exp2(S * scale * log2e - m_safe * scale * log2e)", "exp2(S * log2e - m_safe * log2e)"),),
    "scale is a constant": tuple([("m * scale * log2e - m_safe * scale * log2e", "m * 0.08838834764 * log2e - m_safe * 0.08838834764 * log2e"),
                                  ("S * scale * log2e - m_safe * scale * log2e", "S * 0.08838834764 * log2e - m_safe * 0.08838834764 * log2e")]),
    "base 2 for e": (("exp2(S * scale * log2e - m_safe * scale * log2e)", "exp2(S * scale - m_safe * scale)"),),
    "temperature off by 2 %": (("exp2(S * scale * log2e - m_safe * scale * log2e)", "exp2((S - m_safe) * scale * log2e * 1.02)"),),
    "head map interleaved": ((f"[batch, k = i * BN, {HEADS}]", "[batch, k = i * BN, head % Hk]"),),
    "values of another head": ((f"Copy V (BN, D) in coordinate [batch, k = i * BN, {HEADS}]", "Copy V (BN, D) in coordinate [batch, k = i * BN, 0]"),),
    "keys of the first batch entry": (("Copy K (BN, D) in coordinate [batch, ", "Copy K (BN, D) in coordinate [0, "),),
    "first tile skipped": ((LOOP, LOOP.replace("0 :", "1 :", 1)),),
    "last tile skipped": ((LOOP, "for i = 0 : clamp((block + 1) * BM + Sk - Sq, 0, Sk) // BN"),),
    "one tile visited twice": (("for i = 0 : ceildiv", "for i = 0 : 1 + ceildiv"), ("k = i * BN, head // (Hq // Hk)] from global to shared\n    Compute GEMM Q", "k = max(i - 1, 0) * BN, head // (Hq // Hk)] from global to shared\n    Compute GEMM Q"), ("Copy V (BN, D) in coordinate [batch, k = i * BN", "Copy V (BN, D) in coordinate [batch, k = max(i - 1, 0) * BN")),
    "V tile of the next keys": (("Copy V (BN, D) in coordinate [batch, k = i * BN", "Copy V (BN, D) in coordinate [batch, k = (i + 1) * BN"),),
    "V coordinates swapped": ((f"Copy V (BN, D) in coordinate [batch, k = i * BN, {HEADS}]", f"Copy V (BN, D) in coordinate [{HEADS}, k = i * BN, batch]"),),
    "V is K": (("Compute GEMM P, V and accumulate O", "Compute GEMM P, K and accumulate O"),),
    "weights not normalised": (("Compute where(l == 0, 0, O / l)", "Compute where(l == 0, 0, O)"),),
    "0 / 0 for rows without a key": (("Compute where(l == 0, 0, O / l)", "Compute O / l"),),
    "LSE without the maximum": ((LSE, LSE.replace("m * scale + ", "")),),
    "LSE in base 2": ((LSE, LSE.replace("m * scale + ln(l)", "m * scale * log2e + log2(l)")),),
    "LSE of unscaled scores": ((LSE, LSE.replace("m * scale", "m")),),
    "LSE of rows without a key is finite": ((LSE, "Compute m * scale + ln(max(l, 1e-30)) and get lse"), ),
    "LSE 0 for rows without a key": ((LSE, LSE.replace("-inf", "0")),),
    "output transposed in heads": (("Copy O (BM, D) in coordinate [batch, q = block * BM, head]", "Copy O (BM, D) in coordinate [batch, q = block * BM, Hq - 1 - head]"),),
    "last block not stored": (("Grid block = 0 : ceildiv(Sq, BM)", "Grid block = 0 : Sq // BM"),),
    "P rounded to fp16 by mistake": (("as bf16 and get P", "as fp16 and get P"),),
    "sums of squares": (("RowSum(S)", "RowSum(S * S)"),),
}  # fmt: skip
