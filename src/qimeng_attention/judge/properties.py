"""Properties that hold whatever the values are: pairs of outputs, or of an output and its inputs, that must
agree.

Each is tried on the reference first, and only asked of a candidate where the reference has it: whether
keys may be permuted or heads exchanged follows from the spec's expressions, never from a variant's name.

Not here: comparison with the reference's values (rule.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from qimeng_attention.judge.families import NEEDLE_LOGIT, Tensors
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.tl.numerics import Array

Outputs: TypeAlias = dict[str, Array]
Pair: TypeAlias = tuple[Array, Array]


@dataclass(frozen=True, slots=True)
class Run:
    """One call with its inputs."""

    call: Call
    tensors: Tensors


@dataclass(frozen=True, slots=True)
class Property:
    """Runs whose outputs are bound to each other."""

    name: str
    runs: Callable[[np.random.Generator, Call, Operator], list[Run]]  # none where the call does not allow it
    pairs: Callable[[list[Run], list[Outputs], Operator], list[Pair]]
    exact: bool = False  # bit for bit


def plain(random: np.random.Generator, call: Call) -> Tensors:
    """Draw standard normal inputs, on a grid that every 16-bit type holds."""
    shapes = call.shapes()
    return {n: np.rint(random.standard_normal(shapes[n], np.float32).clip(-4, 4) * 8) / 8 for n in ("Q", "K", "V")}


def _both(outputs: list[Outputs], select: Callable[[Array], Array] = lambda a: a) -> list[Pair]:
    """Compare the first run with the second, after `select`."""
    return [(outputs[0][n], select(outputs[1][n])) for n in outputs[0] if n in outputs[1]]


def _seeing(run: Run, operator: Operator, keys: Array) -> Array:
    """Give which rows see any of `keys`, (B, Sq, Hq)."""
    c = run.call
    rows = np.arange(c.Sq)
    seen = [[operator.visible(c, b, h, rows, keys).any(axis=1) for h in range(c.Hq)] for b in range(c.B)]
    return np.array(seen, bool).reshape(c.B, c.Hq, c.Sq).swapaxes(1, 2)


# ------------------------------------------------------------------ one run


def _needle_runs(random: np.random.Generator, call: Call, operator: Operator) -> list[Run]:
    """Let one visible key dominate each row; the stretches of keys take turns."""
    x = plain(random, call)
    if not call.Sk:
        return []
    x["K"] = np.where(x["K"] < 0, -1, 1).astype(np.float32)
    for b in range(call.B):
        for h in range(call.Hq):
            target = _targets(operator, call, b, h)
            x["Q"][b, :, h] = np.float32(NEEDLE_LOGIT / (call.scale * call.Dqk)) * x["K"][b, target, h // call.group]
    return [Run(call, x)]


def _targets(operator: Operator, call: Call, b: int, h: int) -> Array:
    """Give one visible key for each row, wandering over all of them."""
    seen = operator.visible(call, b, h, np.arange(call.Sq), np.arange(call.Sk))
    wanted = (np.arange(call.Sq) * 7 + h * 13 + b * 5) * max(1, call.Sk // 16) % call.Sk
    order = (np.arange(call.Sk)[None, :] - wanted[:, None]) % call.Sk
    nearest: Array = np.where(seen, order, call.Sk).argmin(axis=1)
    return nearest


def _needle_pairs(runs: list[Run], outputs: list[Outputs], operator: Operator) -> list[Pair]:
    (run,), out = runs, outputs[0]["Out"]
    c, rows = run.call, _seeing(run, operator, np.arange(run.call.Sk))
    want = np.zeros(out.shape)
    for b in range(c.B):
        for h in range(c.Hq):
            want[b, :, h] = run.tensors["V"][b, _targets(operator, c, b, h), h // c.group]
    return [(out[rows], want[rows])]


def _unity_runs(random: np.random.Generator, call: Call, _: Operator) -> list[Run]:
    x = plain(random, call)
    return [Run(call, {**x, "V": np.ones_like(x["V"])})]


def _unity_pairs(runs: list[Run], outputs: list[Outputs], operator: Operator) -> list[Pair]:
    out = outputs[0]["Out"][_seeing(runs[0], operator, np.arange(runs[0].call.Sk))]
    return [(out, np.ones_like(out))]


def _hull_pairs(runs: list[Run], outputs: list[Outputs], operator: Operator) -> list[Pair]:
    c, v = runs[0].call, np.repeat(runs[0].tensors["V"], runs[0].call.group, axis=2)
    rows = _seeing(runs[0], operator, np.arange(c.Sk))
    out = outputs[0]["Out"]
    held = np.clip(out, v.min(axis=1, initial=np.inf)[:, None], v.max(axis=1, initial=-np.inf)[:, None])
    return [(out[rows], held[rows])]


def _two_keys_runs(random: np.random.Generator, call: Call, _: Operator) -> list[Run]:
    small = replace(call, Sk=2)
    x = plain(random, small)
    x["V"][:, 0], x["V"][:, 1] = 1, 0
    return [Run(small, x)]


def _two_keys_pairs(runs: list[Run], outputs: list[Outputs], operator: Operator) -> list[Pair]:
    c, x = runs[0].call, runs[0].tensors
    keys = np.repeat(x["K"], c.group, axis=2).astype(np.float64)
    logits = c.scale * np.einsum("bqhd,bkhd->bqhk", x["Q"].astype(np.float64), keys)
    want = 1 / (1 + np.exp(logits[..., 1] - logits[..., 0]))
    out = outputs[0]["Out"]
    both = _seeing(runs[0], operator, np.array([0])) & _seeing(runs[0], operator, np.array([1]))
    return [(out[both], np.broadcast_to(want[..., None], out.shape)[both])]


# ------------------------------------------------------------------ two runs and more


def _permuted_runs(random: np.random.Generator, call: Call, _: Operator) -> list[Run]:
    x = plain(random, call)
    order = random.permutation(call.Sk)
    return [Run(call, x), Run(call, {**x, "K": x["K"][:, order], "V": x["V"][:, order]})]


def _doubled_runs(random: np.random.Generator, call: Call, _: Operator) -> list[Run]:
    x = plain(random, call)
    twice = {
        "Q": x["Q"],
        "K": np.concatenate([x["K"]] * 2, axis=1),
        "V": np.concatenate([x["V"]] * 2, axis=1),
    }
    return [Run(call, x), Run(replace(call, Sk=2 * call.Sk), twice)]


def _linear_runs(random: np.random.Generator, call: Call, _: Operator) -> list[Run]:
    x, other = plain(random, call), plain(random, call)["V"]
    return [Run(call, {**x, "V": v}) for v in (x["V"] + other, x["V"], other)]


def _linear_pairs(_: list[Run], outputs: list[Outputs], __: Operator) -> list[Pair]:
    return [(outputs[0]["Out"], outputs[1]["Out"] + outputs[2]["Out"])]


def _hidden_runs(random: np.random.Generator, call: Call, _: Operator) -> list[Run]:
    """Change the later half of the keys and values beyond recognition."""
    x = plain(random, call)
    later = np.arange(call.Sk)[None, :, None, None] >= call.Sk // 2
    changed = {**x, "K": np.where(later, 8 * x["K"] + 8, x["K"]), "V": np.where(later, 1024, x["V"])}
    return [Run(call, x), Run(call, {n: a.astype(np.float32) for n, a in changed.items()})]


def _hidden_pairs(runs: list[Run], outputs: list[Outputs], operator: Operator) -> list[Pair]:
    c = runs[0].call
    unaware = ~_seeing(runs[0], operator, np.arange(c.Sk // 2, c.Sk))
    rows = {"Out": unaware, "Lse": unaware.swapaxes(1, 2)}
    return [(outputs[0][n][rows[n]], outputs[1][n][rows[n]]) for n in outputs[0]]


def _batch_runs(random: np.random.Generator, call: Call, operator: Operator) -> list[Run]:
    x = plain(random, call)
    turned = {n: a[::-1] for n, a in x.items()} | _named(operator, call, ("B",), np.flip)
    return [Run(call, x), Run(call, turned)] if call.B > 1 else []


def _heads_runs(random: np.random.Generator, call: Call, operator: Operator) -> list[Run]:
    def turn(a: Array, axis: int) -> Array:
        return _heads_turned(a, axis, call)

    x = plain(random, call)
    turned = {n: turn(a, 2) for n, a in x.items()} | _named(operator, call, ("Hq", "Hk"), turn)
    return [Run(call, x), Run(call, turned)] if call.Hk > 1 else []


def _named(operator: Operator, call: Call, dims: Sequence[str], turn: Callable[[Array, int], Array]) -> Tensors:
    """Give the named tensors of a call, turned along some dimensions as Q, K and V are."""
    found = operator.drawn(call) if operator.tensors else {}
    for name, tensor in operator.tensors.items():
        for axis, dim in enumerate(tensor.dims):
            if dim in dims:
                found[kernel_name(name)] = turn(found[kernel_name(name)], axis)
    return found


def _heads_turned(a: Array, axis: int, call: Call) -> Array:
    """Reverse the key heads, each with its group of query heads."""
    split = a.reshape(*a.shape[:axis], call.Hk, -1, *a.shape[axis + 1 :])
    return np.flip(split, axis).reshape(a.shape)


def _heads_pairs(runs: list[Run], outputs: list[Outputs], _: Operator) -> list[Pair]:
    axis = {"Out": 2, "Lse": 1}
    return [(outputs[0][n], _heads_turned(outputs[1][n], axis[n], runs[0].call)) for n in outputs[0]]


def _repeated_runs(random: np.random.Generator, call: Call, _: Operator) -> list[Run]:
    x = plain(random, call)
    many = {"Q": x["Q"], **{n: np.repeat(x[n], call.group, axis=2) for n in ("K", "V")}}
    return [Run(call, x), Run(replace(call, Hk=call.Hq), many)] if call.group > 1 else []


def _equal(_: list[Run], outputs: list[Outputs], __: Operator) -> list[Pair]:
    return _both(outputs)


def _equal_out(_: list[Run], outputs: list[Outputs], __: Operator) -> list[Pair]:
    return [(outputs[0]["Out"], outputs[1]["Out"])]


PROPERTIES: tuple[Property, ...] = (
    Property("a dominating key gives its value", _needle_runs, _needle_pairs),
    Property("values of 1 give 1", _unity_runs, _unity_pairs),
    Property(
        "outputs lie between the least and the greatest value",
        lambda r, c, o: [Run(c, plain(r, c))],
        _hull_pairs,
    ),
    Property("two keys are weighed by the sigmoid of their difference", _two_keys_runs, _two_keys_pairs),
    Property("the order of the keys does not matter", _permuted_runs, _equal_out),
    Property("giving every key twice changes nothing", _doubled_runs, _equal_out),
    Property("outputs are linear in the values", _linear_runs, _linear_pairs),
    Property("keys that a row does not see cannot change it", _hidden_runs, _hidden_pairs, exact=True),
    Property("batch entries do not mix", _batch_runs, lambda r, o, _: _both(o, lambda a: a[::-1]), exact=True),
    Property("heads do not mix", _heads_runs, _heads_pairs, exact=True),
    Property("grouped heads equal repeated keys", _repeated_runs, _equal, exact=True),
)


def difference(pairs: list[Pair]) -> float:
    """Give the largest difference within pairs; equal infinities agree, NaN never does."""
    worst = 0.0
    for a, b in pairs:
        with np.errstate(invalid="ignore"):
            error = np.where(a == b, 0, np.abs(np.asarray(a, np.float64) - b))
        worst = max(worst, float(np.where(np.isnan(error), np.inf, error).max(initial=0)))
    return worst


def compared(pairs: list[Pair]) -> int:
    """Count the elements that pairs compare."""
    return sum(a.size for a, _ in pairs)
