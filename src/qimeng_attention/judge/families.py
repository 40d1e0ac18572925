"""Families of input values, each tied to a way in which attention kernels go wrong.

A family fills q, k and v of one call; magnitudes follow the call's scale, so that a family's logits are
what its name says at any head dim. Every family gives finite values of every 16-bit type.

Not here: which family meets which shape (inputs.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.traverse import expressions

Tensors: TypeAlias = dict[str, Array]
Family: TypeAlias = Callable[[np.random.Generator, Call, Operator], Tensors]

NEEDLE_LOGIT = 60.0  # e^-60 is far below the roundoff of any type
GROWTH = 60.0
DRAWS = 4  # alternative targets drawn for each row


def _plain(random: np.random.Generator, call: Call) -> Tensors:
    shapes = call.shapes()
    return {name: random.standard_normal(shapes[name], np.float32) for name in ("Q", "K", "V")}


def _scaled(q: float, k: float = 1.0, v: float = 1.0) -> Family:
    """Stretch standard normal values."""

    def family(random: np.random.Generator, call: Call, _: Operator) -> Tensors:
        x = _plain(random, call)
        return {"Q": x["Q"] * np.float32(q), "K": x["K"] * np.float32(k), "V": x["V"] * np.float32(v)}

    return family


def _same_keys(random: np.random.Generator, call: Call, _: Operator) -> Tensors:
    """Give every key of a head the same row: all logits of a row are equal, the output is a mean of V."""
    x = _plain(random, call)
    return {**x, "K": np.broadcast_to(x["K"][:, :1], x["K"].shape)}


def _around(logit: float) -> Family:
    """Put all logits near one value: half of each row carries it, the other half is noise."""

    def family(random: np.random.Generator, call: Call, _: Operator) -> Tensors:
        x = _plain(random, call)
        half = (call.Dqk + 1) // 2
        size = np.sqrt(abs(logit) / (abs(call.scale) * half))
        x["Q"][..., :half] = size
        x["K"][..., :half] = size * np.sign(logit) * np.sign(call.scale)
        return x

    return family


def _direction(random: np.random.Generator, call: Call) -> tuple[Array, np.float32]:
    """Give a row of signs, and what to multiply it with on one side for a logit of 1."""
    return random.choice(np.array([-1, 1], np.float32), call.Dqk), np.float32(1 / (call.scale * call.Dqk))


def _along(profile: Callable[[Array], Array]) -> Family:
    """Let the logits follow a profile of the key's relative position."""

    def family(random: np.random.Generator, call: Call, _: Operator) -> Tensors:
        x = _plain(random, call)
        signs, unit = _direction(random, call)
        logits = profile(np.arange(call.Sk) / max(1, call.Sk)).astype(np.float32)
        x["Q"] = np.float32(0.1) * x["Q"] + signs
        x["K"] = np.float32(0.1) * x["K"] + (logits * unit)[None, :, None, None] * signs
        return x

    return family


def _alternating(random: np.random.Generator, call: Call, operator: Operator) -> Tensors:
    x = _along(lambda t: 12.0 * (1 - 2 * (np.arange(len(t)) % 2)))(random, call, operator)
    signs = (1 - 2 * (np.arange(call.Sk) // 2 % 2)).astype(np.float32)
    return {**x, "V": 4 * signs[None, :, None, None] * (1 + np.abs(x["V"]))}


def _ramp(random: np.random.Generator, call: Call, _: Operator) -> Tensors:
    x = _plain(random, call)
    rise = 50 * np.arange(call.Sk, dtype=np.float32) / max(1, call.Sk)
    return {**x, "V": 100 + rise[None, :, None, None] + x["V"]}


def _outliers(random: np.random.Generator, call: Call, _: Operator) -> Tensors:
    return {
        name: a + 10 * random.standard_normal(a.shape, np.float32) * (random.random(a.shape) < 1e-3)
        for name, a in _plain(random, call).items()
    }


def _saturating(random: np.random.Generator, call: Call, operator: Operator) -> Tensors:
    """Spread the logits beyond the largest number that the score expression names."""
    numbers = [abs(float(e.value)) for e in expressions(operator.score) if isinstance(e, s.Num)]
    spread = 2 * max([4.0, *[n for n in numbers if n <= 1e3]])
    x = _plain(random, call)
    return {**x, "Q": x["Q"] * np.float32(spread / (abs(call.scale) * call.Dqk**0.5))}


# ------------------------------------------------------------------ needles


def _aimed(random: np.random.Generator, call: Call, targets: Array) -> Tensors:
    """Let one key dominate each row; `targets` are (B, Hq, Sq) key positions."""
    x = _plain(random, call)
    if not call.Sk:
        return x
    x["K"] = np.sign(x["K"]) + (x["K"] == 0)
    unit = np.float32(NEEDLE_LOGIT / (call.scale * call.Dqk))
    for b in range(call.B):
        for h in range(call.Hq):
            x["Q"][b, :, h] = unit * x["K"][b, targets[b, h], h // call.group]
    return x


def _needle(random: np.random.Generator, call: Call, _: Operator) -> Tensors:
    """Aim at every stretch of keys in turn, at a random place of it, and at the first and the last key."""
    rows = np.arange(call.B * call.Hq * call.Sq).reshape(call.B, call.Hq, call.Sq)
    last = max(0, call.Sk - 1)
    steps = max(1, min(call.Sk // 8, 64)) + 2
    places = (rows % steps - 1 + random.random(rows.shape)) / (steps - 2)
    return _aimed(random, call, np.clip((places * call.Sk).astype(int), 0, last))


def _edge(random: np.random.Generator, call: Call, operator: Operator) -> Tensors:
    """Aim at keys on both sides of where the mask begins or ends: a mask off by one shows."""
    targets = np.zeros((call.B, call.Hq, call.Sq), int)
    drawn: Array | None = None
    for b in range(call.B):
        for h in range(call.Hq):
            if drawn is None or operator.reads_position or call.lens:
                drawn = edges(random, call, operator, b, h)
            targets[b, h] = drawn[(b + h) % DRAWS]
    return _aimed(random, call, targets)


def edges(random: np.random.Generator, call: Call, operator: Operator, b: int, h: int) -> Array:
    """Draw for each row keys just inside or outside of what it sees, (DRAWS, Sq)."""
    drawn = random.integers(0, max(1, call.Sk), (DRAWS, call.Sq))
    if call.Sk < 2:
        return drawn
    step = max(1, (1 << 22) // call.Sk)
    for start in range(0, call.Sq, step):
        rows = np.arange(start, min(start + step, call.Sq))
        seen = operator.visible(call, b, h, rows, np.arange(call.Sk))
        turns = seen[:, 1:] != seen[:, :-1]
        some = turns.any(axis=1)
        for n in range(DRAWS):
            picked = np.where(turns, random.random(turns.shape, np.float32), -1).argmax(axis=1)
            drawn[n, rows[some]] = (picked + random.integers(0, 2, len(rows)))[some]
    return drawn


TINY = 2.0**-16  # subnormal in fp16

FAMILIES: dict[str, Family] = {
    "normal": _scaled(1),
    "large logits": _scaled(8),
    "huge logits": _scaled(30, 3),
    "same keys": _same_keys,
    "logits near -120": _around(-120),
    "logits near -60000": _around(-6e4),
    "growing logits": _along(lambda t: GROWTH * t),
    "falling logits": _along(lambda t: -GROWTH * t),
    "alternating signs": _alternating,
    "offset ramp": _ramp,
    "outliers": _outliers,
    "saturating": _saturating,
    "needles": _needle,
    "mask edges": _edge,
    "tiny values": _scaled(1, 1, TINY),
    "zeros": _scaled(0, 1, 0),
}
