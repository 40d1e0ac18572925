"""Mutants that compute the same: for each kind why. A mutant that lives and is not named here fails the test."""

from __future__ import annotations

import re

_IDEMPOTENT = "it only reads what it does not write, so doing it twice is doing it once"
_INDEPENDENT = "neither of the two statements reads or writes what the other writes"
_MORE_TILES = "it visits more tiles, and the mask hides every key in them: each adds exp2(-inf) = 0 times a row of V"
_EMPTY_BLOCKS = "the further blocks have no row, head or batch entry: Copy reads 0 for them and stores nothing"
_FIRST_TILE = "the first tile rescales it by exp2(-inf) = 0, and a row that sees no tile is decided by m = -inf and l"
_IMPLIED = "the other condition implies it for every row that exists, since q < Sq gives k <= q + Sk - Sq < Sk"
_NO_KEY = "it differs only where m_new = -inf, and there exp2(-inf - x) = 0 for every finite x"
_SAME_TEST = (
    "the comparison has the same outcome: 0 and -inf keep their place under this change (scores stay below 2^127)"
)
_LSE = "where l = 0 the other branch gives -inf too: m = -inf and ln(0) = -inf"

EQUIVALENT: tuple[tuple[str, str], ...] = (
    (r"bound: Grid .* \+ 1(, .*)?", _EMPTY_BLOCKS),
    (r"initial: Allocate S .*", "the first GEMM gives S a fresh value before anything reads it"),
    (r"initial: Allocate (O|l) .* = 1$", _FIRST_TILE),
    (r"bound: for i = 0 : .* -> for i = 0 : (max\(.*|ceildiv\(.*|.*Sk \+ Sq.*|.*\) \+ 1)$", _MORE_TILES),
    (r"duplicate: (Copy [QKV]|Reshape|Compute GEMM Q|Compute Mask).*", _IDEMPOTENT),
    (r"duplicate: Compute .* and get (m_new|m_safe|alpha|lse)$", _IDEMPOTENT),
    (r"duplicate: Compute m_new and get new m$", _IDEMPOTENT),
    (r"exchange: .* and get alpha <-> .* and get new S", _INDEPENDENT),
    (r"exchange: Compute l \* alpha .* <-> Compute O \* alpha .*", _INDEPENDENT),
    (r"exchange: Compute O \* alpha .* <-> Compute m_new and get new m", _INDEPENDENT),
    (r"exchange: Compute m_new and get new m <-> Copy V .*", _INDEPENDENT),
    (r"exchange: Copy V .* <-> Reshape .*", _INDEPENDENT),
    (r"exchange: Copy O .* <-> Compute where\(l == 0, -inf, .*", _INDEPENDENT),
    (r"expression: Compute Mask S .* -> Compute Mask S where k <= q \+ Sk - Sq( and k <=? Sk( \+ 1)?)?$", _IMPLIED),
    (r"expression: .* get m_safe -> .*where\(m_new == -inf, -?1, .*", _NO_KEY),
    (r"expression: .* get m_safe -> .*where\((-inf == m_new|m_new == -inf [+-] 1|m_new \* 2\.0 == -inf).*", _SAME_TEST),
    (r"expression: .* -> Compute where\((0 == l|l \* 2\.0 == 0|-l == 0), .*", _SAME_TEST),
    (r"expression: .* get lse -> .*where\(l == -1, .*", _LSE),
)


def reason(name: str) -> str | None:
    """Give why a mutant of this name computes the same, or None."""
    return next((why for pattern, why in EQUIVALENT if re.fullmatch(pattern, name)), None)
