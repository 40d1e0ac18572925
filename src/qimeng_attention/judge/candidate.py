"""A candidate as the judge sees it: something that gives outputs for inputs, or stops with a reason.

`Interpreted` runs checked TL on the CPU. Tensors are found by their roles' names: Q, K, V, Out and Lse.
Not here: a built kernel on a GPU (device.py).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from qimeng_attention import caches
from qimeng_attention.caches import PAGE
from qimeng_attention.errors import DiagnosticError, JudgeError
from qimeng_attention.judge.contents import shape_of
from qimeng_attention.judge.meaning import Call, own_sizes_of
from qimeng_attention.judge.packed_call import as_packed
from qimeng_attention.judge.storage import shapes_for, sizes_for, stored
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.packed import OFFSETS, OFFSETS_DTYPE, TOKENS
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.functions import APPROXIMATIONS
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.printer import print_program
from qimeng_attention.tl.small_model import gathered_tile, tile_of_size
from qimeng_attention.tl.traverse import expressions, statements
from qimeng_attention.tl.types import Checked

INPUTS = ("Q", "K", "V")
DIMS = {
    "Q": "(B, Sq, Hq, Dqk)",
    "K": "(B, Sk, Hk, Dqk)",
    "V": "(B, Sk, Hk, Dv)",
    "Out": "(B, Sq, Hq, Dv)",
    "Lse": "(B, Hq, Sq)",
}
PACKED_DIMS = {
    "Q": "(Tq, Hq, Dqk)",
    "K": "(Tk, Hk, Dqk)",
    "V": "(Tk, Hk, Dv)",
    "Out": "(Tq, Hq, Dv)",
    "Lse": "(Hq, Tq)",
    "StartQ": "(B + 1)",
    "StartK": "(B + 1)",
}
SCALE = "scale"
CHOSEN = (2, 1, 3, 7)  # values for a size that a launcher chooses, taken in turn from shape to shape


class Stopped(Exception):
    """A candidate gave no outputs: a fault while interpreted, a crash, a hang."""

    def __init__(self, reason: str, diagnostics: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(reason)
        self.reason, self.diagnostics = reason, tuple(diagnostics)


class Candidate(Protocol):
    """Anything the judge can run."""

    name: str
    digest: str
    any_heads: bool  # the counts of heads are arguments of each call
    numbers: frozenset[int]  # that its text names: it may do something else beyond such a length
    approximated: frozenset[str]  # functions that it computes with a stated error

    def run(self, call: Call, tensors: Mapping[str, Array], layout: str) -> dict[str, Array]:
        """Give the outputs by name; elements never written hold NaN.

        Raises:
            Stopped: it gave none.
        """


def digest_of(kernels: Sequence[Checked]) -> str:
    """Give the digest of a program's text."""
    text = print_program(s.Program(tuple(k.kernel for k in kernels), ()))
    return hashlib.sha256(text.encode()).hexdigest()


def run_kernels(
    kernels: Sequence[Checked],
    sizes: Mapping[str, int],
    tensors: Mapping[str, Array],
    scalars: Mapping[str, float],
    seed: int,
    *,
    partial: bool = False,
) -> dict[str, Array]:
    """Interpret kernels in order; a later one reads what an earlier one wrote.

    With `partial` elements that no block writes hold NaN.

    Raises:
        Stopped: a fault, or an output element never written.
        JudgeError: sizes for which the program has no meaning.
    """
    known = dict(tensors)
    outputs: dict[str, Array] = {}
    for kernel in kernels:
        inputs = {name: known[name] for name in kernel.inputs}
        try:
            with np.errstate(all="ignore"):
                own = {n: scalars[n] for n in kernel.scalars}
                given = interpret(kernel, sizes, inputs, own, seed=seed, partial=partial)
        except DiagnosticError as error:
            found = [d.to_json() for d in error.diagnostics]
            raise Stopped(f"{found[0]['code']}: {found[0]['message']}", found) from None
        except (ValueError, KeyError, ArithmeticError) as error:
            raise JudgeError(
                f"{kernel.kernel.name} cannot run with {dict(sizes)}: {error}",
                hint="check the declared sizes",
            ) from None
        outputs |= given
        known |= given
    return outputs


def tiles_of(kernels: Sequence[Checked]) -> tuple[int, int]:
    """Give how many queries and keys the program's tiles hold, 1 where nothing steps along them."""
    found = [tile_of_size(kernel) for kernel in kernels]
    names = [(length, TOKENS[length]) for length in ("Sq", "Sk")]
    queries, keys = (max((tiles.get(n, 1) for tiles in found for n in either), default=1) for either in names)
    return queries, max(keys, *(gathered_tile(kernel) for kernel in kernels))


def numbers_in(kernels: Sequence[Checked]) -> frozenset[int]:
    """Give the integers that a program names, in its statements and as fixed sizes."""
    found = {value for kernel in kernels for value in kernel.fixed.values()}
    for kernel in kernels:
        for n in statements(kernel.kernel.body):
            found |= {e.value for e in expressions(n) if isinstance(e, s.Num) and isinstance(e.value, int)}
    return frozenset(found)


def approximated_in(kernels: Sequence[Checked]) -> frozenset[str]:
    """Give the functions for which a program has an approximation: in its statements, or by its Schedule."""
    found = set()
    for kernel in kernels:
        used = {e.function for n in statements(kernel.kernel.body) for e in expressions(n) if isinstance(e, s.Call)}
        chosen = {c.words[1] for c in kernel.kernel.schedule if c.words[0] == "approximate" and len(c.words) > 1}
        found |= {exact for exact, (other, _) in APPROXIMATIONS.items() if other in used or exact in chosen}
    return frozenset(found)


class Interpreted:
    """Checked TL that computes an `AttentionSpec`, run on the CPU.

    Raises:
        JudgeError: tensors, sizes or scalars that do not fit the spec.
    """

    def __init__(self, kernels: Sequence[Checked], spec: AttentionSpec) -> None:
        self.kernels, self._spec = tuple(kernels), spec
        self.name = kernels[0].kernel.name
        self.digest = digest_of(kernels)
        one = spec.Hq == spec.Hk  # a kernel for as many key heads as query heads may know but one size
        heads = [k for k in kernels if {*INPUTS, "Out"} & {*k.inputs, *k.outputs}]  # others may know of none
        self.any_heads = all("Hq" in k.sizes and ("Hk" in k.sizes or (one and "Hk" not in k.fixed)) for k in heads)
        self.numbers = numbers_in(kernels)
        self.approximated = approximated_in(kernels)
        self._partial = spec.varlen  # tokens may belong to no sequence
        self._runs = 0
        _check_names(self.kernels, spec)
        _check_sizes(self.kernels, spec)

    def run(self, call: Call, tensors: Mapping[str, Array], layout: str) -> dict[str, Array]:
        """Interpret the kernels; roles interleave in another order in each run, strides mean nothing here."""
        self._runs += 1
        given = stored(self._spec, call, tensors)
        sizes = sizes_of(call) | given.sizes | chosen_sizes(chosen_in(self.kernels), call)
        scalars = {SCALE: call.scale}
        return run_kernels(self.kernels, sizes, given.tensors, scalars, self._runs, partial=self._partial)


def sizes_of(call: Call) -> dict[str, int]:
    """Give every size a program may name."""
    sizes = call.sizes | {"Dqk": call.Dqk, "Dv": call.Dv}
    return sizes | ({"D": call.Dqk} if call.Dqk == call.Dv else {})


def chosen_in(kernels: Sequence[Checked]) -> list[str]:
    """Give the sizes that a launcher chooses."""
    return [name for kernel in kernels for name in kernel.chosen]


def chosen_sizes(names: Sequence[str], call: Call) -> dict[str, int]:
    """Draw the sizes that a launcher chooses: a program is right for any, so each shape takes others."""
    return {name: CHOSEN[(call.Sq + call.Sk + place) % len(CHOSEN)] for place, name in enumerate(names)}


def _check_names(kernels: tuple[Checked, ...], spec: AttentionSpec) -> None:
    """Find the roles' tensors, of the right type, and nothing else to feed."""
    made: set[str] = set()
    named = given_besides(spec)
    for kernel in kernels:
        for name in kernel.inputs:
            if name not in INPUTS and name not in made and name not in named:
                raise _unfit(f"input {name} is no tensor of the spec", name, [*INPUTS, *named, *made])
        made |= set(kernel.outputs)
        for name in kernel.scalars:
            if name != SCALE:
                raise _unfit(f"Scalar {name} is no argument of the spec", name, [SCALE])
    given = {n: t for k in kernels for n, t in k.tensors.items() if n in k.inputs or n in k.outputs}
    inputs = (*INPUTS, *named)
    for name in [*inputs, "Out", *(["Lse"] if "LSE" in spec.outputs else [])]:
        if name not in given or (name not in inputs and name not in made):
            raise _unfit(
                f"the program has no {'input' if name in inputs else 'output'} {name}",
                name,
                list(given),
                declare=name,
                dims=_dims(spec).get(name, ""),
            )
        dtype = named.get(name) or ("f32" if name == "Lse" else spec.dtype)
        if given[name].dtype != dtype:
            raise JudgeError(
                f"{name} is {given[name].dtype}, the spec asks for {dtype}", hint=f"declare {name} as {dtype}"
            )
    if not any(SCALE in k.scalars for k in kernels):
        raise JudgeError(
            "the program takes no Scalar scale, which each call gives",
            hint="declare `Scalar scale f32 > 0` and use it",
        )


def given_besides(spec: AttentionSpec) -> dict[str, str]:
    """Give the type of each tensor that a call hands over beside Q, K and V, by the name that programs give."""
    offsets = dict.fromkeys(OFFSETS.values(), OFFSETS_DTYPE) if spec.varlen else {}
    named = {kernel_name(name): t.dtype for name, t in spec.tensors.items()}
    return named | offsets | {name: t.dtype for name, t in caches.tensors(spec).items()}


def _dims(spec: AttentionSpec) -> dict[str, str]:
    """Give how each tensor is declared."""
    lying = {name: t.describe() for name, t in caches.tensors(spec).items()}
    if spec.page_size is not None:
        lying |= {name: f"(Pages, Page, Hk, {'Dqk' if name == 'K' else 'Dv'})" for name in ("K", "V")}
    dims = PACKED_DIMS if spec.varlen else DIMS
    return dims | lying | {kernel_name(name): t.describe() for name, t in spec.tensors.items()}


def _unfit(message: str, name: str, known: list[str], declare: str = "", dims: str = "") -> JudgeError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"name it {name}: found {near[0]}" if near and declare else f"did you mean {near[0]}?" if near else ""
    if declare and not near:
        hint = f"declare `Allocate {declare} in global {dims}`"
    return JudgeError(message, hint=hint or f"tensors are {', '.join(DIMS)}, the only Scalar is {SCALE}")


def _check_sizes(kernels: tuple[Checked, ...], spec: AttentionSpec) -> None:
    """Compare fixed sizes and declared shapes with the spec's."""
    asked = {
        "Hq": spec.Hq,
        "Hk": spec.Hk,
        "Dqk": spec.Dqk,
        "Dv": spec.Dv,
        "B": spec.B,
        "Sq": spec.Sq,
        "Sk": spec.Sk,
    }
    lengths, own = (spec.B or 2, spec.Sq or 3, spec.Sk or 5), own_sizes_of(spec, 0)
    call = as_packed(Call(*lengths, spec.Hq, spec.Hk, spec.Dqk, spec.Dv, spec.default_scale, own), spec)
    chosen = chosen_sizes(chosen_in(kernels), call)
    shapes = call.shapes() | {kernel_name(n): shape_of(t, call.sizes) for n, t in spec.tensors.items()}
    shapes |= shapes_for(spec, call)
    asked |= {PAGE: spec.page_size} if spec.page_size is not None else {}
    known = sizes_of(call) | sizes_for(spec, call)
    for kernel in kernels:
        for name in asked.keys() & kernel.fixed.keys():
            if kernel.fixed[name] != asked[name]:
                wanted = "any" if asked[name] is None else asked[name]
                raise JudgeError(
                    f"the program fixes {name} = {kernel.fixed[name]}, the spec asks for {wanted}",
                    hint=f"declare `Size {name}`{'' if wanted == 'any' else f' = {wanted}'}",
                )
        if unknown := sorted(set(kernel.sizes) - known.keys() - set(chosen_in(kernels))):
            raise JudgeError(
                f"the run-time size {unknown[0]} is no size of the spec", hint=f"sizes are {', '.join(known)}"
            )
        for name, shape in shapes.items():
            tensor = kernel.tensors.get(name)
            if (
                tensor is not None
                and tuple(integer(d, {**known, **chosen, **kernel.fixed}) for d in tensor.dims) != shape
            ):
                raise JudgeError(
                    f"{name} is not declared as {_dims(spec)[name]} with the spec's sizes",
                    hint=f"declare it as {_dims(spec)[name]}",
                )
