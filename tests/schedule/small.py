"""Programs with small tiles, in four masks, and what they compute: material of the tests of rewritings."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from qimeng_attention.tl.checker import check
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.numerics import INTEGER_TYPES
from qimeng_attention.tl.parser import parse, parse_expression
from qimeng_attention.tl.syntax import Program
from qimeng_attention.tl.types import Checked
from tl.fuzzing import PROGRAMS

Arrays = dict[str, np.ndarray]
Sizes = dict[str, int]

_CAUSAL_END = "ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)"
_CAUSAL_MASK = "k <= q + Sk - Sq and k < Sk"


def text_of(name: str) -> str:
    return (PROGRAMS / f"{name}.tl").read_text("utf-8")


def without_schedule(text: str) -> str:
    return re.split(r"\nSchedule\b.*", text)[0] + "\n"


def edit(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


_SMALL = edit(without_schedule(text_of("gqa_causal")), ("BM = 128, BN = 64", "BM = 32, BN = 16"), ("D = 128", "D = 64"))
MASKS = {
    "causal": _SMALL,
    "full": edit(_SMALL, (_CAUSAL_END, "ceildiv(Sk, BN)"), (_CAUSAL_MASK, "k < Sk")),
    "window": edit(
        _SMALL,
        (f"0 : {_CAUSAL_END}", f"max(0, block * BM + Sk - Sq - 20) // BN : {_CAUSAL_END}"),
        (_CAUSAL_MASK, "k > q + Sk - Sq - 20 and k <= q + Sk - Sq and k < Sk"),
    ),
    "prefix": edit(_SMALL, (_CAUSAL_END, "ceildiv(Sk, BN)"), (_CAUSAL_MASK, "(k < 24 or k <= q + Sk - Sq) and k < Sk")),
}


def scheduled_text(text: str, *choices: str) -> str:
    if any(c.startswith("roles") for c in choices):
        text = edit(text, (" for a100", ""))  # which has no barriers in memory; without a target the tiles may be small
    return text + "\nSchedule\n" * bool(choices) + "".join(f"    {c}\n" for c in choices)


# B, Sq, Sk, Hq, Hk: lengths 0 and 1, one row or key more or less than the tiles, and Sk < Sq among them
SHAPES = [
    (1, 0, 0, 1, 1), (1, 1, 0, 1, 1), (1, 0, 5, 1, 1), (1, 1, 1, 1, 1), (1, 1, 16, 1, 1), (1, 1, 17, 2, 1),
    (1, 1, 70, 1, 1), (1, 31, 15, 1, 1), (1, 32, 16, 1, 1), (1, 33, 17, 1, 1), (1, 32, 32, 1, 1), (1, 33, 31, 2, 2),
    (1, 40, 9, 1, 1),
    (1, 64, 1, 1, 1), (1, 65, 33, 1, 1), (1, 16, 48, 1, 1), (1, 32, 65, 2, 1), (1, 47, 47, 1, 1), (1, 48, 64, 1, 1),
    (1, 64, 64, 1, 1), (2, 33, 40, 2, 1), (1, 20, 100, 1, 1), (1, 70, 81, 1, 1), (1, 5, 130, 1, 1),
]  # fmt: skip
SIZES = [dict(zip(("B", "Sq", "Sk", "Hq", "Hk"), shape, strict=True)) for shape in SHAPES]


# What the integer inputs of the design programs may hold: places in a cache, lengths that their tables cover,
# block numbers.
INTEGERS = {"Table": ("0", "Pages"), "Length": ("0", "Most * Page + 1")}


def inputs_of(checked: Checked, sizes: Sizes, seed: int = 0) -> Arrays:
    """Give random inputs: normal numbers, and small integers, -1 among them where nothing else is asked."""
    rng = np.random.default_rng(seed)
    made: Arrays = {}
    for name in checked.inputs:
        tensor = checked.tensors[name]
        shape = tuple(integer(d, {**checked.fixed, **sizes}) for d in tensor.dims)
        if tensor.dtype in INTEGER_TYPES:
            low, high = (
                integer(parse_expression(e), {**checked.fixed, **sizes}) for e in INTEGERS.get(name, ("-1", "4"))
            )
            made[name] = rng.integers(low, high, shape)
        else:
            made[name] = rng.standard_normal(shape).astype(np.float32)
    return made


@cache
def _run_text(text: str, sizes: tuple[tuple[str, int], ...]) -> list[Arrays]:
    return run(parse(text), dict(sizes))


def run_text(text: str, sizes: Sizes) -> list[Arrays]:
    """Interpret every kernel of a text; what is computed once is kept."""
    return _run_text(text, tuple(sizes.items()))


def run(program: Program, sizes: Sizes) -> list[Arrays]:
    """Interpret every kernel of a program on the same random inputs."""
    found = []
    for checked in check(program, model=False):
        own = {name: sizes[name] for name in checked.sizes}
        scalars = dict.fromkeys(checked.scalars, 0.17)
        found.append(interpret(checked, own, inputs_of(checked, own), scalars, seed=11))
    return found


def differences(one: list[Arrays], other: list[Arrays], kind: str) -> list[str]:
    """Compare outputs as the class of a rewriting asks: bit by bit, or within what another order of sums may cost."""
    found = []
    for a, b in zip(one, other, strict=True):
        for name in a:
            if kind == "exact":
                same = np.array_equal(a[name], b[name], equal_nan=True)
            else:
                # Two float32 sums of at most 130 terms differ by 130 * 2^-24 of their size, less than 2^-16; a result
                # that this moves over a rounding boundary of bf16 moves by one place, 2^-7 of its size.
                # Weights that are rounded at another size (approximate) differ by 2^-8 of theirs, and so a result by
                # 2^-8 of the largest value, which is less than 5 here; LSE has no rounded weights in it.
                most = 5 * 2.0**-8 if kind == "approximate" and name == "Out" else 2.0**-14
                same = bool(np.allclose(a[name], b[name], rtol=2.0**-7 + 2.0**-16, atol=most, equal_nan=True))
            if not same:
                found.append(f"{name}: {np.argwhere(a[name] != b[name])[:1].tolist()}")
    return found
