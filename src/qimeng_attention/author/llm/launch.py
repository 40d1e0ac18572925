"""How a kernel in CUDA meets the launcher: the signature that a model is told, and the launch line that it writes.

    // launch: threads=128 shared_bytes=49152 grid=(ceildiv(Sq, 64), Hq, B)

Arguments are in the launcher's order: each tensor's pointer with the strides of all dimensions but the last, then the
sizes, then the scale. Expressions become JSON, as a manifest holds them.

Not here: what a source may include (includes.py), compiling it (workflow/cuda.py), launching it (runtime).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.errors import QimengError, SpecError
from qimeng_attention.targets import Target

SIZES = ("B", "Sq", "Sk", "Hq", "Hk")
SCALE = "scale"
TYPES = {
    "fp16": "__half",
    "bf16": "__nv_bfloat16",
    "f32": "float",
    "i32": "int",
    "i64": "long long",
    "bool": "bool",
}
FEWEST_THREADS, MOST_THREADS = 32, 1024
_ALIGN = 16  # bytes, of rows of 16-bit tensors that tiles are made of
_MOST_CHARACTERS = 200  # of a grid: a parser's stack is not the model's to fill
_DEEPEST = 16  # half of what a manifest takes
_MOST = 2**31 - 1
_DECLARED = re.compile(r"(\w+) in global \(([\w, ]+)\) (\w+)")
_LINE = re.compile(r"//[ \t]*launch:[ \t]*threads=(\S+)[ \t]+shared_bytes=(\S+)[ \t]+grid=\((.*)\)[ \t]*")
_WRITE = "write as the first line: // launch: threads=128 shared_bytes=49152 grid=(ceildiv(Sq, 64), Hq, B)"
_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
}
_FUNCTIONS = {"ceildiv": (2, 2), "min": (2, 8), "max": (2, 8), "clamp": (3, 3)}  # fewest and most arguments


class BadLaunch(QimengError):
    """A launch line that is missing, or that no launch can follow."""

    exit_code = 1
    code = "LM310"


@dataclass(frozen=True, slots=True)
class Launch:
    """What a launch line says; an entry of the grid is JSON: 4, "Hq", ["ceildiv", "Sq", 64]."""

    threads: int
    shared_bytes: int
    grid: tuple[Any, ...]


# ------------------------------------------------------------------ the kernel's face
def tensors_of(wanted: Wanted) -> list[dict[str, Any]]:
    """Give the tensors in order, as a manifest's facts: name, dtype, dims, role, align.

    Raises:
        SpecError: a named tensor is declared in a form that no argument can have.
    """
    qk, v = wanted.head_dims
    found = [
        _tensor("Q", wanted.dtype, ["B", "Sq", "Hq", qk], align=_ALIGN),
        _tensor("K", wanted.dtype, ["B", "Sk", "Hk", qk], align=_ALIGN),
        _tensor("V", wanted.dtype, ["B", "Sk", "Hk", v], align=_ALIGN),
        *(_declared(line) for line in wanted.tensors),
        _tensor("Out", wanted.dtype, ["B", "Sq", "Hq", v], align=_ALIGN, role="output"),
    ]
    return found + ([_tensor("Lse", "f32", ["B", "Hq", "Sq"], role="output")] if wanted.lse else [])


def _declared(line: str) -> dict[str, Any]:
    match = _DECLARED.match(line)
    if match is None or match[3] not in TYPES:
        raise SpecError(f"'{line}' declares no tensor", hint="write it as `Slopes in global (Hq) f32`", field="tensors")
    dims = [int(d) if d.isdecimal() else d for d in (part.strip() for part in match[2].split(","))]
    return _tensor(match[1], match[3], dims)


def _tensor(name: str, dtype: str, dims: list[int | str], *, align: int = 0, role: str = "input") -> dict[str, Any]:
    item = {"fp16": 2, "bf16": 2, "f32": 4, "i32": 4, "i64": 8, "bool": 1}[dtype]
    return {"name": name, "dtype": dtype, "dims": dims, "role": role, "align": align or item}


def sizes_of(wanted: Wanted) -> list[str]:
    """Give the sizes that are arguments: the operator's, then those that only a named tensor tells."""
    own = (d for t in tensors_of(wanted) for d in t["dims"] if isinstance(d, str))
    return list(dict.fromkeys([*SIZES, *own]))


def signature(wanted: Wanted) -> str:
    """Write the kernel's signature: a line for each tensor with its strides and its shape, then sizes and scale."""
    lines = []
    for tensor in tensors_of(wanted):
        constant = "const " if tensor["role"] == "input" else ""
        strides = "".join(f", long long {tensor['name']}_s{d}" for d in range(len(tensor["dims"]) - 1))
        shape = ", ".join(map(str, tensor["dims"]))
        lines.append(f"    {constant}{TYPES[tensor['dtype']]}* {tensor['name']}{strides},  // ({shape})")
    lines.append(f"    {', '.join(f'int {n}' for n in sizes_of(wanted))},")
    return "\n".join([f'extern "C" __global__ void {wanted.name}(', *lines, f"    float {SCALE})"])


def facts_of(wanted: Wanted, launch: Launch) -> dict[str, Any]:
    """Give grid and arguments as a manifest holds them, like those of a translated kernel."""
    names = ("x", "y", "z")
    return {
        "grid": [{"name": n, "start": 0, "stop": stop} for n, stop in zip(names, launch.grid, strict=False)],
        "persistent": False,
        "counter": False,
        "tensors": tensors_of(wanted),
        "sizes": sizes_of(wanted),
        "scalars": [{"name": SCALE, "dtype": "f32", "op": ">", "bound": 0.0}],
        "maps": [],
        "chosen": {},
    }


# ------------------------------------------------------------------ the launch line
def launch_of(source: str, wanted: Wanted, target: Target) -> Launch:
    """Read the launch line of a source.

    Raises:
        BadLaunch: it is missing or malformed, or asks for what no launch on this GPU can have.
    """
    first = source.split("\n", 1)[0].strip()
    match = _LINE.fullmatch(first)
    if match is None:
        if "launch:" in first:
            raise BadLaunch(f"the launch line `{first[:120]}` has another form", hint=_WRITE)
        elsewhere = re.search(r"^[ \t]*//[ \t]*launch:", source, re.MULTILINE) is not None
        found = "stands further down" if elsewhere else "is missing"
        raise BadLaunch(f"the source's first line is no launch line: it {found}", hint=_WRITE)
    known = set(sizes_of(wanted))
    constants = {"D": wanted.head_dims[0], "Dv": wanted.head_dims[1]}
    threads = _number("threads", match[1], FEWEST_THREADS, min(MOST_THREADS, target.max_threads_per_block))
    shared = _number("shared_bytes", match[2], 0, target.shared_per_block_bytes)
    return Launch(threads, shared, _grid(match[3], known, constants))


def _number(name: str, text: str, least: int, most: int) -> int:
    if re.fullmatch(r"\d{1,9}", text) is None:
        raise BadLaunch(f"{name}={text[:40]} is no integer", hint=f"write a number from {least} to {most}")
    if not least <= int(text) <= most:
        raise BadLaunch(f"{name}={text} is not from {least} to {most}", hint=f"take {name} from {least} to {most}")
    return int(text)


def _grid(text: str, known: set[str], constants: Mapping[str, int]) -> tuple[Any, ...]:
    if len(text) > _MOST_CHARACTERS:
        raise BadLaunch(f"the grid has over {_MOST_CHARACTERS} characters", hint="write one to three short expressions")
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise BadLaunch(f"the grid ({text}) is no list of expressions", hint=_WRITE) from None
    entries = tree.elts if isinstance(tree, ast.List) else []
    if not 1 <= len(entries) <= 3:
        raise BadLaunch(f"the grid ({text}) has {len(entries)} entries", hint="give one to three: blocks along x, y, z")
    grid = tuple(_expression(entry, known, constants) for entry in entries)
    for entry in grid:
        if isinstance(entry, int) and entry < 1:
            raise BadLaunch(f"an entry of the grid ({text}) is {entry}", hint="an entry is a number of blocks")
    return grid


def _expression(node: ast.expr, known: set[str], constants: Mapping[str, int], depth: int = 0) -> Any:
    """Give an expression of the grid as JSON."""
    if depth > _DEEPEST:
        raise BadLaunch(f"`{ast.unparse(node)}` in the grid is nested too deeply", hint="write a shorter expression")
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool) and value <= _MOST:
            return value
        case ast.Name(id=name) if name in known:
            return name
        case ast.Name(id=name) if name in constants:
            return constants[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return [_OPERATORS[type(op)], *(_expression(side, known, constants, depth + 1) for side in (left, right))]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            fewest, most = _FUNCTIONS[name]
            if fewest <= len(args) <= most:
                return [name, *(_expression(a, known, constants, depth + 1) for a in args)]
    written = ast.unparse(node)
    division = "; division is // (rounds down) or ceildiv" if "/" in written.replace("//", "") else ""
    raise BadLaunch(
        f"`{written}` in the grid is no integer expression of the sizes",
        hint=f"names are {', '.join([*sorted(known), *constants])}; functions {', '.join(_FUNCTIONS)}{division}",
    )
