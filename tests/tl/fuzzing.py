"""Texts to break the checker with: programs from a grammar, valid and nearly valid, and mutated shipped programs."""

from __future__ import annotations

import random
import re
from pathlib import Path

from qimeng_attention.tl.parser import KEYWORDS

PROGRAMS = Path(__file__).parents[2] / "docs" / "design" / "programs"
SHIPPED = [p.read_text("utf-8") for p in sorted(PROGRAMS.glob("*.tl"))]

_HUGE = [
    "0",
    "1",
    "-1",
    "7",
    "1000000",
    "1048577",
    "99999999999",
    "4611686018427387903",
    "9" * 30,
    "1e400",
    "1e-400",
    "0.5",
]
_WORDS = [
    *KEYWORDS,
    "GEMM",
    "Mask",
    "where",
    "new",
    "get",
    "and",
    "accumulate",
    "from",
    "to",
    "in",
    "global",
    "shared",
    "register",
    "coordinate",
    "async",
    "signals",
    "slot",
    "stages",
    "swizzle",
    "view",
    "over",
    "with",
    "down",
    "persistent",
    "tiles",
    "along",
    "pending",
    "gemm",
    "copies",
    "stores",
    "turn",
    "at",
    "as",
    "not",
    "or",
    "Scan",
    "reverse",
    "exclusive",
    "bf16",
    "fp16",
    "f32",
    "i32",
    "e4m3",
    "Q",
    "K",
    "V",
    "O",
    "S",
    "P",
    "m",
    "l",
    "D",
    "BM",
    "BN",
    "B",
    "Sq",
    "Sk",
    "Hq",
    "block",
    "head",
    "batch",
    "i",
    "q",
    "k",
    "inf",
    "log2e",
    "L",
    "MMA_A",
    "MMA_C",
    "MMA_M",
    "RowMax",
    "RowSum",
    "LaneSum",
    "exp2",
    "max",
    "min",
    "ceildiv",
    "clamp",
    "where",
    "ring",
    "prefetch",
    "hold",
    "sums",
    "store",
    "split",
    "warps",
    "grid",
    "copies",
    "explicit",
    "first",
    "last",
    "full",
    "empty",
]
_SIGNS = [
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "(",
    ")",
    "[",
    "]",
    ",",
    ":",
    "=",
    "<",
    "<=",
    "==",
    "!=",
    ">",
    ">=",
    ".",
    ".T",
    ";",
    "#",
    "\n",
    "\n    ",
    "\n        ",
]
_ODD = ["\t", "\r", "\x00", "\x0c", "\u2028", "é", "→", "١", "０", "\ufeff", "🙂", "'", '"', "\\", "~"]


# ------------------------------------------------------------------ mutated texts


def mutated(seed: int) -> str:
    """Change a shipped program in one to six places."""
    rng = random.Random(f"mutated {seed}")
    text = rng.choice(SHIPPED)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        text = rng.choice((_token, _token, _token, _line, _character, _nest))(text, rng)
    return text


def _token(text: str, rng: random.Random) -> str:
    parts = re.findall(r"\w+|\s+|[^\w\s]", text) or [""]
    n = rng.randrange(len(parts))
    while parts[n].isspace() and rng.random() < 0.8:
        n = rng.randrange(len(parts))
    match rng.randrange(6):
        case 0:
            parts[n] = ""
        case 1:
            parts[n] = f"{parts[n]} {parts[n]}"
        case 2:
            other = rng.randrange(len(parts))
            parts[n], parts[other] = parts[other], parts[n]
        case 3:
            numbers = [i for i, p in enumerate(parts) if p.isdigit()] or [n]
            parts[rng.choice(numbers)] = rng.choice(_HUGE)
        case 4:
            names = [i for i, p in enumerate(parts) if p.isidentifier()] or [n]
            parts[rng.choice(names)] = rng.choice(_WORDS)
        case 5:
            parts[n] = rng.choice(_SIGNS)
    return "".join(parts)


def _line(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    n, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[n]
        case 1:
            lines.insert(other, lines[n])
        case 2:
            lines[n], lines[other] = lines[other], lines[n]
        case 3:
            lines[n] = " " * rng.randrange(13) + lines[n].lstrip()
        case 4:
            stolen = rng.choice(SHIPPED).split("\n")
            lines.insert(n, rng.choice(stolen))
        case 5:
            lines[n:other] = []
    return "\n".join(lines)


def _character(text: str, rng: random.Random) -> str:
    n = rng.randrange(len(text) + 1)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:n] + text[n + rng.randrange(1, 5) :]
    if kind == 1:
        return text[:n] + rng.choice(_ODD) + text[n:]
    if kind == 2:
        return text[:n] + chr(rng.randrange(32, 127)) + text[n + 1 :]
    return text[:n]


def _nest(text: str, rng: random.Random) -> str:
    depth = rng.choice((20, 59, 61, 200, 900))
    shape = rng.randrange(7)
    if shape == 0:
        blocks = "".join(" " * n + "if B > 0\n" for n in range(depth))
        return text + "\n" + blocks + " " * depth + "Barrier\n"
    if shape == 1:
        uses = "\n".join(f"    Compute Many{n} S\n    Compute Many{n} S" for n in range(min(depth, 12)))
        return "".join(f"Define Many{n} S\n{uses}\n" for n in range(min(depth, 12))) + text.replace(
            "OnlineSoftmax", "Many0"
        )
    expression = {
        2: "(" * depth + "B" + ")" * depth,
        3: " + ".join(["Sq"] * depth),
        4: "-" * depth + "B",
        5: "not " * depth + "B > 0",
        6: "min(" * depth + "B, B" + ", B)" * (depth - 1) + ")",
    }[shape]
    lines = text.split("\n")
    lines.insert(
        rng.randrange(len(lines)),
        rng.choice(
            (
                f"Let x = {expression}",
                f"Compute S * ({expression}) and get new S",
                f"Compute Mask S where {expression}",
                f"if {expression}",
            )
        ),
    )
    return "\n".join(lines)


# ------------------------------------------------------------------ generated texts


def generated(seed: int) -> str:
    """Write a program from the grammar: most are legal, the others break a rule here and there."""
    return _Writer(random.Random(f"generated {seed}")).program()


class _Writer:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.slip = rng.choice((0.0, 0.0, 0.01, 0.03, 0.1))  # how often a rule is broken
        self.lines: list[str] = []
        self.indent = 0
        self.rows, self.columns = rng.choice((16, 32, 64)), rng.choice((16, 32, 64))
        self.depth = rng.choice((16, 32, 64))
        self.dtype = rng.choice(("bf16", "fp16"))
        self.vectors = ["m", "l"]  # along q
        self.ints = ["block", "head", "batch"]
        self.made = 0

    def line(self, text: str) -> None:
        if self.rng.random() < self.slip / 2:
            text = _token(text, self.rng)
        if self.rng.random() < self.slip / 3:
            return
        self.lines.append(" " * self.indent + text + ("  # why" if self.rng.random() < 0.05 else ""))

    def pick(self, *right: str) -> str:
        """Choose a legal word, or now and then one that is not."""
        return self.rng.choice(_WORDS + _HUGE) if self.rng.random() < self.slip else self.rng.choice(right)

    def fresh(self) -> str:
        self.made += 1
        return f"x{self.made}"

    # -------------------------------------------------------------- expressions
    def integer(self, level: int = 2) -> str:
        if level == 0 or self.rng.random() < 0.4:
            return self.pick(*self.ints, "B", "Sq", "Sk", "BM", "BN", "1", "2", "64")
        a, b = self.integer(level - 1), self.integer(level - 1)
        return self.rng.choice(
            (
                f"{a} + {b}",
                f"{a} - {b}",
                f"({a}) * {self.pick('2', '3', 'BN')}",
                f"min({a}, {b})",
                f"max({a}, {b})",
                f"({a}) // {self.pick('2', '64', 'max(B, 1)')}",
                f"({a}) % {self.pick('2', '3')}",
                f"ceildiv({a}, BM)",
                f"clamp({a}, 0, {b})",
            )
        )

    def number(self, names: list[str], level: int = 2) -> str:
        if level == 0 or self.rng.random() < 0.3:
            return self.pick(*names, "scale", "0.5", "log2e", "2")
        a, b = self.number(names, level - 1), self.number(names, level - 1)
        return self.rng.choice(
            (
                f"{a} + {b}",
                f"{a} * ({b})",
                f"{a} - {b}",
                f"max({a}, {b})",
                f"exp2({a} - {b})",
                f"-({a})",
                f"tanh({a})",
                f"where({a} > {b}, {a}, 0)",
                f"abs({a})",
                f"sigmoid({a})",
                f"{a} / (1 + abs({b}))",
                f"{a} * Slopes[head]",
            )
        )

    def condition(self, level: int = 2) -> str:
        if level == 0 or self.rng.random() < 0.4:
            a, b = self.pick("k", "q", "k - q", "k // 16", "q - 3"), self.integer(1)
            return f"{a} {self.pick('<', '<=', '>', '>=', '==', '!=')} {b}"
        a, b = self.condition(level - 1), self.condition(level - 1)
        return self.rng.choice((f"{a} and {b}", f"({a}) or ({b})", f"not ({a})"))

    # -------------------------------------------------------------- programs
    def program(self) -> str:
        self._header()
        self.line(f"Copy Q (BM, D) in coordinate [batch, q = block * BM, {self.pick('head')}] from global to shared")
        for _ in range(self.rng.randrange(3)):
            self._let()
        self._loop()
        if self.rng.random() < 0.8:
            self.line("Compute where(l == 0, 0, O / l) and get new O")
        self.line(
            f"Copy O (BM, D) in coordinate [batch, q = {self.pick('block * BM')}, head] from register to global Out"
        )
        if self.rng.random() < 0.8:
            self._schedule()
        return "\n".join(self.lines) + "\n"

    def _header(self) -> None:
        rng = self.rng
        self.line(f"Kernel generated for {self.pick('a100', 'l40s', 'h200', 'rtx3090')}")
        self.line("Size B, Sq, Sk, H" if rng.random() < 0.9 else f"Size B, Sq, H\nSize Sk = {self.pick('100', '256')}")
        self.line(f"Size D = {self.pick(str(self.depth))}")
        self.line("Scalar scale f32 > 0")
        self.line(f"Tile BM = {self.pick(str(self.rows))}, BN = {self.pick(str(self.columns))}")
        down = self.pick(" down", "", "")
        self.line(f"Grid block = 0 : ceildiv(Sq, BM){down}, head = 0 : {self.pick('H')}, batch = 0 : {self.pick('B')}")
        for name, length in (("Q", "Sq"), ("K", "Sk"), ("V", "Sk"), ("Out", "Sq")):
            self.line(f"Allocate {name} in global (B, {length}, H, D) {self.pick(self.dtype)}")
        self.line("Allocate Slopes in global (H) f32")
        self.line(f"Allocate O in register ({self.pick('BM')} q, D) f32 = 0")
        self.line("Allocate m in register (BM q) f32 = -inf")
        self.line("Allocate l in register (BM q) f32 = 0")

    def _let(self) -> None:
        name = self.fresh()
        self.line(f"Let {name} = {self.integer()}")
        self.ints.append(name)

    def _loop(self) -> None:
        first = self.pick("0", "0", "0", "min(1, ceildiv(Sk, BN))")
        self.line(f"for i = {first} : {self.pick('ceildiv(Sk, BN)')}{self.pick('', '', ' down')}")
        self.indent += self.rng.choice((4, 4, 2))
        self.ints.append("i")
        self.line("Copy K (BN, D) in coordinate [batch, k = i * BN, head] from global to shared")
        self.line(f"Compute GEMM Q, {self.pick('K.T')} and get S")
        for _ in range(self.rng.randrange(4)):
            self._step()
        if self.rng.random() < 0.7:
            self.line(f"Compute Mask S where {self.condition()} and k < Sk" + self.rng.choice(("", "", " else 0")))
        else:
            self.line("Compute Mask S where k < Sk")
        if self.rng.random() < 0.8:
            self.line("Compute OnlineSoftmax S, O, m, l with scale * log2e")
        self.line("Copy V (BN, D) in coordinate [batch, k = i * BN, head] from global to shared")
        self.line(
            f"Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as {self.pick(self.dtype)} and get P"
        )
        self.line("Compute GEMM P, V and accumulate O")
        self.ints.remove("i")
        self.indent = 0
        if self.rng.random() < 0.5:
            self.lines.append("end")

    def _step(self) -> None:
        match self.rng.randrange(6):
            case 0:
                self.line(f"Compute {self.number(['S', *self.vectors])} and get new S")
            case 1:
                name = self.fresh()
                self.line(f"Compute {self.number(self.vectors)} + m and get {name}")
                self.vectors.append(name)
            case 2:
                self.line(f"Compute {self.pick('Multiply', 'Add', 'Subtract')} S, scale and get new S")
            case 3:
                self.line(f"if {self.integer()} < {self.integer()}")
                self.indent += 4
                self.line("Compute S * 0.5 and get new S")
                self.indent -= 4
            case 4:
                self._let()
                self.ints.pop()
            case 5:
                self.line("Compute S + Slopes[head] * (k - q) and get new S")

    def _schedule(self) -> None:
        self.lines.append("Schedule")
        stages = {"K": self.rng.choice((1, 1, 2, 3)), "V": self.rng.choice((1, 1, 2))}
        choices = [
            f"ring K stages {self.pick(str(stages['K']))}, V stages {self.pick(str(stages['V']))}",
            f"prefetch K {self.rng.randrange(stages['K'] + 1)} ahead, V {self.rng.randrange(stages['V'] + 1)} ahead",
            "hold Q in register",
            "sums per lane",
            "store O through shared over Q",
            self.pick("copies async", "copies sync"),
            "split loop i where Mask is not all true",
            f"warps {self.rows // 16} along {self.pick('q')}",
            self.pick("grid longest first", "grid head fastest"),
        ]
        for choice in self.rng.sample(choices, self.rng.randrange(1, len(choices) + 1)):
            text = _token(choice, self.rng) if self.rng.random() < self.slip else choice
            self.lines.append(f"    {text}")
