"""What a model's source may include: the headers of CUDA's types and of CuTe, and no other file of this machine.

The text of a source is looked at before any compiler reads it, without asking what is a comment and what a string: a
directive that a compiler could see is seen here too, and one in a comment is refused as well.

Not here: the program in an answer (answers.py), compiling it (build).
"""

from __future__ import annotations

import re

from qimeng_attention.errors import QimengError

ALLOWED = ("cuda_fp16.h", "cuda_bf16.h", "mma.h", "cuda_runtime.h")
_CUTE = re.compile(r"cute(?:/[A-Za-z0-9_]+)+\.hpp")
_BLANK = r"(?:[ \t]|/\*(?:[^*]|\*(?!/))*\*/)*"
_DIRECTIVE = re.compile(rf"(?:#|%:){_BLANK}(include_next|include|import|embed)\b{_BLANK}([^\n]*)")
_SPLICE = re.compile(r"\\[ \t]*\n")  # what a compiler joins before it looks for directives
_NAMED = re.compile(rf"<([^<>\n]+)>{_BLANK}(?://.*)?")
_PROBES = ("__has_include", "__has_include_next", "__has_embed")
HINT = f"include only {', '.join(f'<{name}>' for name in ALLOWED)} and <cute/...hpp>"


class BadInclude(QimengError):
    """A source that includes, or asks for, a file that it may not."""

    exit_code = 1
    code = "LM311"


def check_includes(source: str) -> None:
    """Refuse a source that could read a file it may not.

    Raises:
        BadInclude: another header, one by a path or a macro, or a directive that reads something else.
    """
    text = _SPLICE.sub("", source.replace("\r\n", "\n"))
    if "??=" in text or "??/" in text:
        raise BadInclude("the source has a trigraph", hint="write the character itself")
    for probe in _PROBES:
        if probe in text:
            raise BadInclude(f"the source asks for files by {probe}", hint=HINT)
    for directive, rest in _DIRECTIVE.findall(text):
        if directive != "include":
            raise BadInclude(f"#{directive} is not allowed", hint=HINT)
        named = _NAMED.fullmatch(rest.strip())
        if named is None or not (named[1] in ALLOWED or _CUTE.fullmatch(named[1])):
            raise BadInclude(f"#include {rest.strip()[:80]} is not allowed", hint=HINT)
