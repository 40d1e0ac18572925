"""Named tensors of a spec: what else a call hands over, for masks and scores to index.

    slopes: {dims: [Hq], dtype: f32}          score - slopes[h] * (q_idx + Sk - Sq - kv_idx)
    doc: {dims: [B, Sk], dtype: i32}          doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]

A dimension is one of the sizes B, Hq, Hk, Sq, Sk, a number, or a size of its own, which each call reads off the
tensor. An element outside of a tensor reads 0 (false).

Not here: whether an expression indexes them rightly (tl/named.py), what a call must give (runtime/).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SIZES = ("B", "Hq", "Hk", "Sq", "Sk")
# How a spec and how the language call a type.
DTYPES = {"f32": "f32", "f16": "fp16", "bf16": "bf16", "i32": "i32", "i64": "i64", "bool": "bool"}
MOST_DIMS = 6
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")

# What expressions and calls name already, and what the shipped programs call their own.
_OF_EXPRESSIONS = {*SIZES, "b", "h", "q_idx", "kv_idx", "score", "inf", "log2e", "ln2", "and", "or", "not"}
_OF_CALLS = {"q", "k", "v", "out", "lse", "scale", "return_lse", "tensors", "lists", "self", "seqused_k", "page_table"}
_OF_PROGRAMS = {"Q", "K", "V", "Out", "Lse", "S", "O", "P", "D", "Dqk", "Dv", "BM", "BN", "L", "T"}
_OF_PROGRAMS |= {"Seen", "List", "Cut", "Visited", "BI", "BR", "BJ"}  # of lists (author/planner/lists.py)
_OF_PROGRAMS |= {"SequsedK", "PageTable", "Page", "Pages", "MaxPages"}  # of caches (caches.py)
_OF_THE_LANGUAGE = {
    "Kernel", "Size", "Scalar", "Tile", "Grid", "Define", "Schedule", "Allocate", "Let", "Copy", "Compute", "GEMM",
    "Mask", "Reshape", "Scan", "Wait", "Release", "Pass", "Commit", "Barrier", "Fence", "Warps", "RowMax", "RowSum",
    "LaneSum", "Add", "Subtract", "Multiply", "Divide", "Softmax", "OnlineSoftmax",
}  # fmt: skip
_RESERVED = _OF_EXPRESSIONS | _OF_CALLS | _OF_PROGRAMS | _OF_THE_LANGUAGE


@dataclass(frozen=True, slots=True)
class Dims:
    """A named tensor: its dimensions, outermost first, and its type."""

    dims: tuple[str | int, ...]
    dtype: str  # as the language calls it

    def describe(self) -> str:
        """Write shape and type, `(B, Sk) i32`."""
        return f"({', '.join(map(str, self.dims))}) {self.dtype}"


class Problem(ValueError):
    """What is wrong with a declaration: one sentence, one action, and the nearest valid choice."""

    def __init__(self, message: str, hint: str, nearest: Any = None, allowed: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.message, self.hint, self.nearest, self.allowed = message, hint, nearest, list(allowed)


def kernel_name(name: str) -> str:
    """Name a tensor as programs do: with a capital letter, `Slopes` for `slopes`."""
    return name[0].upper() + name[1:]


def declared(given: Any) -> dict[str, Dims]:
    """Read declarations: a mapping of names to `{dims: [...], dtype: ...}`.

    Raises:
        Problem: a name, dimension or type that makes no sense.
    """
    if not isinstance(given, Mapping):
        raise Problem("tensors must map names to dims and dtype", "write `slopes: {dims: [Hq], dtype: f32}`")
    found = {}
    for name, fields in given.items():
        _check_name(name)
        if isinstance(fields, Dims):
            fields = {"dims": fields.dims, "dtype": fields.dtype}
        if not isinstance(fields, Mapping) or set(fields) != {"dims", "dtype"}:
            raise Problem(f"tensor {name} needs dims and dtype, and nothing else", "write {dims: [Hq], dtype: f32}")
        found[str(name)] = Dims(_dims(name, fields["dims"]), _dtype(name, fields["dtype"]))
    _check_clashes(found)
    return found


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Read the form of the command line, `doc:B,Sk:i32`.

    Raises:
        Problem: it has another form.
    """
    parts = text.split(":")
    if len(parts) != 3 or not all(parts):
        raise Problem(f"'{text}' is no tensor", "write NAME:DIMS:TYPE, as slopes:Hq:f32 or doc:B,Sk:i32")
    name, dims, dtype = (part.strip() for part in parts)
    sizes = [d.strip() for d in dims.split(",")]
    return name, {"dims": [int(d) if d.isdecimal() else d for d in sizes], "dtype": dtype}


def own_sizes(tensors: Mapping[str, Dims]) -> tuple[str, ...]:
    """Give the sizes that only these tensors name, in order."""
    named = (d for t in tensors.values() for d in t.dims if isinstance(d, str) and d not in SIZES)
    return tuple(dict.fromkeys(named))


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or _IDENTIFIER.fullmatch(name) is None:
        nearest = re.sub(r"\W", "_", str(name)).strip("_")[:32] or "tensor"
        raise Problem(
            f"'{name}' is no name of a tensor: letters, digits and underscores, 32 at most, a letter first",
            f"nearest valid choice: {nearest}",
            nearest,
        )
    if {name, kernel_name(name)} & _RESERVED:
        raise Problem(
            f"the tensor '{name}' has the name of something else in expressions, calls or programs",
            f"choose another name, as {name}_values",
            f"{name}_values",
        )


def _dims(name: str, dims: Any) -> tuple[str | int, ...]:
    if not isinstance(dims, list | tuple) or not 1 <= len(dims) <= MOST_DIMS:
        raise Problem(f"tensor {name} needs 1 to {MOST_DIMS} dims", "write them as a list: [B, Sk]")
    for d in dims:
        if isinstance(d, bool) or not isinstance(d, str | int) or (isinstance(d, int) and not 1 <= d < 1 << 31):
            raise Problem(
                f"the dimension {d!r} of tensor {name} is neither a size nor a positive number",
                f"sizes are {', '.join(SIZES)}, or a new name",
                allowed=SIZES,
            )
        if isinstance(d, str) and d not in SIZES:
            _check_size(name, d)
    return tuple(dims)


def _check_size(name: str, size: str) -> None:
    """Refuse what is likely meant to be a known size, and what cannot name a new one."""
    near = [n for n in SIZES if n.lower() == size.lower()]
    if near or _IDENTIFIER.fullmatch(size) is None or not size[0].isupper() or size in _RESERVED:
        nearest = near or difflib.get_close_matches(size, SIZES, n=1, cutoff=0.3)
        raise Problem(
            f"the dimension '{size}' of tensor {name} is no size",
            f"did you mean '{nearest[0]}'?"
            if nearest
            else f"sizes are {', '.join(SIZES)}, or a new name with a capital letter, such as N",
            nearest[0] if nearest else None,
            SIZES,
        )


def _dtype(name: str, dtype: Any) -> str:
    known = {**DTYPES, "fp16": "fp16"}
    if dtype not in known:
        near = difflib.get_close_matches(str(dtype).replace("int", "i").replace("float", "f"), DTYPES, n=1, cutoff=0.3)
        raise Problem(
            f"the type {dtype!r} of tensor {name} is unknown",
            f"did you mean '{near[0]}'?" if near else f"types are {', '.join(DTYPES)}",
            near[0] if near else None,
            tuple(DTYPES),
        )
    return known[dtype]


def _check_clashes(found: Mapping[str, Dims]) -> None:
    sizes = set(own_sizes(found))
    programs: dict[str, str] = {}
    for name in found:
        other = programs.setdefault(kernel_name(name), name)
        if other != name or {name, kernel_name(name)} & sizes:
            what = f"the tensor '{other}'" if other != name else "a size"
            raise Problem(
                f"the tensor '{name}' would have the same name as {what} in programs",
                f"choose another name, as {name}_values",
                f"{name}_values",
            )
