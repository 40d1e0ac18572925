"""How things of TL are called in C++: g for global, s for shared, r for registers, as the field does."""

from __future__ import annotations

from qimeng_attention.tl.numerics import BYTES

ELEMENTS = {
    "bf16": "tl::bf16",
    "fp16": "tl::fp16",
    "f32": "float",
    "i32": "int32_t",
    "i64": "int64_t",
    "u8": "uint8_t",
    "bool": "bool",
}
KEYWORDS = frozenset(
    [
        "alignas",
        "and",
        "asm",
        "auto",
        "bool",
        "break",
        "case",
        "catch",
        "char",
        "class",
        "const",
        "constexpr",
        "continue",
        "default",
        "delete",
        "do",
        "double",
        "else",
        "enum",
        "explicit",
        "export",
        "extern",
        "false",
        "float",
        "for",
        "friend",
        "goto",
        "if",
        "inline",
        "int",
        "long",
        "main",
        "mutable",
        "namespace",
        "new",
        "not",
        "nullptr",
        "operator",
        "or",
        "private",
        "protected",
        "public",
        "register",
        "return",
        "short",
        "signed",
        "sizeof",
        "static",
        "struct",
        "switch",
        "template",
        "this",
        "throw",
        "true",
        "try",
        "typedef",
        "typename",
        "union",
        "unsigned",
        "using",
        "virtual",
        "void",
        "volatile",
        "while",
        "xor",
        "r",
        "c",
        "tl",
        "cute",
    ]
)
assert set(ELEMENTS) <= set(BYTES)


def variable(name: str) -> str:
    """Name a size, scalar, loop variable or Let."""
    return f"{name}_" if name in KEYWORDS else name


def tensor(name: str) -> str:
    """Name a tensor's pointer."""
    return f"g{name}"


def stride(name: str, dimension: int) -> str:
    """Name a tensor's stride of a dimension, in elements."""
    return f"g{name}_stride_{dimension}"


def shared(name: str) -> str:
    """Name a tile in shared memory."""
    return f"s{name}"


def register(name: str) -> str:
    """Name a tile in registers."""
    return f"r{name}"
