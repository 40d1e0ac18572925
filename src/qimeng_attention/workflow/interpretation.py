"""Running a TL file on random inputs, for `qimeng interpret`."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_attention.errors import SpecError
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.numerics import INTEGER_TYPES, Array
from qimeng_attention.tl.small_model import starts
from qimeng_attention.tl.types import Checked

MOST_ELEMENTS = 1 << 27  # of one tensor: 1 GB as they are drawn


def interpret_file(
    text: str, file: str, sizes: dict[str, int], scalars: dict[str, float], seed: int, save: Path | None
) -> dict[str, Any]:
    """Run the first kernel of a TL text on N(0, 1) inputs (integer tensors: zeros, or evenly rising
    where a Find searches them) and describe its tensors.

    Raises:
        DiagnosticError: the program is refused, or a fault is found while running.
        SpecError: a size or scalar is missing.
    """
    checked = check_text(text, file=file)[0]
    for name in checked.sizes:
        if name not in sizes:
            raise SpecError(
                f"size {name} has no value",
                hint=f"write --sizes {','.join(f'{n}=1' for n in checked.sizes)}",
                field="sizes",
                value=name,
            )
        if sizes[name] < 0:
            raise SpecError(
                f"size {name} = {sizes[name]} is negative",
                hint="sizes begin at 0",
                field="sizes",
                value=sizes[name],
            )
    _refuse_large(checked, sizes)
    values = {name: scalars.get(name, 1.0) for name in checked.scalars}
    inputs = _inputs(checked, sizes, seed)
    outputs = interpret(checked, sizes, inputs, values, seed=seed, source=text, file=file)
    if save is not None:
        np.savez(save, allow_pickle=False, **{**inputs, **outputs})
    return {
        "sizes": {n: sizes[n] for n in checked.sizes},
        "scalars": values,
        "seed": seed,
        "tensors": [_described(n, a) for n, a in {**inputs, **outputs}.items()],
    }


def _shape(checked: Checked, name: str, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(integer(d, {**checked.fixed, **sizes}) for d in checked.tensors[name].dims)


def _refuse_large(checked: Checked, sizes: dict[str, int]) -> None:
    for name in (*checked.inputs, *checked.outputs):
        if (elements := prod(_shape(checked, name, sizes))) > MOST_ELEMENTS:
            raise SpecError(
                f"{name} would have {elements:.3g} elements, more than {MOST_ELEMENTS:,}",
                hint="take sizes of a few tiles: the interpreter is for meaning, not for speed",
                field="sizes",
                value=name,
            )


def _inputs(checked: Checked, sizes: dict[str, int], seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    rising = starts(checked, sizes)
    for name in checked.inputs:
        tensor = checked.tensors[name]
        shape = _shape(checked, name, sizes)
        integers = tensor.dtype in INTEGER_TYPES
        zeros = rising.get(name, np.zeros(shape, np.int64)) if integers else None
        made[name] = zeros if zeros is not None else rng.standard_normal(shape).astype(np.float32)
    return made


def _described(name: str, values: Array) -> dict[str, Any]:
    finite = values[np.isfinite(values)] if values.size else values
    number = (
        {"least": float(finite.min()), "greatest": float(finite.max()), "mean": float(finite.mean())}
        if finite.size
        else {}
    )
    return {
        "name": name,
        "shape": list(values.shape),
        "finite": f"{finite.size} of {values.size}",
        **{k: f"{number[k]:.5g}" if k in number else "" for k in ("least", "greatest", "mean")},
    }
