"""Kinds of failure: what a diagnostic's code, a verdict or a missing answer says of how a program went wrong.

Codes map to kinds by one table, so that a count needs nobody's opinion. Whoever reads a failure may add a named cause,
which stands beside the kinds and never replaces them.

Not here: the diagnostics (docs/tl/diagnostics.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from qimeng_attention.study.record import Attempt

KINDS: Mapping[str, tuple[str, ...]] = {
    "not written as TL": ("TL001", "TL002", "TL003", "TL004", "TL005"),
    "left as a sketch": ("TL100",),
    "hallucinated call or name": ("TL101", "TL108", "TL109"),
    "name declared twice": ("TL102",),
    "number unknown before the launch": ("TL103", "TL107"),
    "types confused": ("TL104",),
    "axes confused": ("TL105",),
    "shapes confused": ("TL106", "TL110"),
    "reshape omitted": ("TL201",),
    "transpose confused": ("TL202", "TL203"),
    "used before it is filled": ("TL204",),
    "end of the keys not masked": ("TL205",),
    "nothing stored": ("TL206",),
    "wrong memory": ("TL207",),
    "statement in the wrong place": ("TL208", "TL209"),
    "output not written once": ("TL301", "TL304"),
    "loop misses or repeats keys": ("TL302", "TL303"),
    "synchronisation": tuple(f"TL4{n:02}" for n in range(1, 14)),
    "too large for the GPU": ("TL501", "TL502"),
    "not possible on the GPU": ("TL503", "TL504", "TL505", "TL506"),
    "schedule refused": ("TL601", "TL602", "TL603"),
    "not lowered": ("TL701",),
    "does not compile": ("Q300",),
    "cannot be launched": ("Q500", "Q600", "LM310"),
    "another file included": ("LM311",),
    "not judged": ("Q400", "inconclusive"),
    "wrong numbers": ("rejected",),
    "not a number": ("rejected: NaN", "rejected: infinity"),
    "crash or hang": ("crashed", "timed out"),
    "answer without a program": ("no program", "LM300"),
}
_KIND_OF = {code: kind for kind, codes in KINDS.items() for code in codes}

# What a reader may call a failure by; each is said in the words of the operator, not of the code.
CAUSES: Mapping[str, str] = {
    "wrong mask": "another set of keys is seen than the request says",
    "wrong alignment": "the query's position is not q + Sk - Sq",
    "empty rows": "a row that sees no key gives something else than asked",
    "wrong recurrence": "what is carried from tile to tile is updated or rescaled wrongly",
    "wrong epilogue": "what happens behind the loop is wrong",
    "wrong score": "the score expression, its scale or its order is wrong",
    "scaled twice or not at all": "the scale enters twice, or nowhere",
    "infinities met": "an infinity of the mask meets a function or a product that makes NaN of it",
    "hidden keys weigh something": "the mask stands in front of a function that maps its fill to a weight",
    "wrong heads": "a query head takes another key head than its group's",
    "wrong LSE": "the output is right and the LSE is not",
    "another operator": "the program computes something else than the request",
}


def kind_of(code: str) -> str:
    """Give the kind of a code; a code without one keeps its name."""
    return _KIND_OF.get(code, f"other: {code}")


def kinds_of(attempt: Attempt) -> list[str]:
    """Give the kinds of an attempt's failure, each once; none where it was accepted."""
    if attempt.accepted:
        return []
    found = [kind_of(code) for code in attempt.codes]
    if attempt.fault:
        found.append(f"no answer: {attempt.fault}")
    if not found:
        found = [f"unexplained: {attempt.refused_by or 'no gate run'}"]
    return list(dict.fromkeys(found))


def code_of_verdict(verdict: str, reason: str) -> str:
    """Give the code by which a verdict that is not accepted is counted."""
    if verdict != "rejected":
        return verdict
    if " is nan" in reason.lower():
        return "rejected: NaN"
    return "rejected: infinity" if " is inf" in reason or " is -inf" in reason else "rejected"
