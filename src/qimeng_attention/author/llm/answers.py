"""The program in a model's answer: one fenced block, told apart from none, several, and one of another kind.

What a model says is data: it is never run, and nothing of it reaches a terminal before control characters are gone.
"""

from __future__ import annotations

import re
import unicodedata

from qimeng_attention.errors import QimengError

MOST_CHARACTERS = 100_000
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNSEEN = ("Cf", "Cs", "Zl", "Zp")  # also letters of no width, in which text can be hidden from a person


class NoProgram(QimengError):
    """An answer that holds no program, or more than one."""

    exit_code = 1
    code = "LM300"


def blocks(text: str) -> list[tuple[str, str]]:
    """Give the fenced blocks of a text: word behind the fence, content. One that never ends reaches to the end."""
    # NOTE: line by line: one expression for a whole block takes quadratic time over a long run of backticks.
    found: list[tuple[str, str]] = []
    fence, word, content = "", "", list[str]()
    *lines, last = (line + "\n" for line in text.replace("\r\n", "\n").split("\n"))
    for line in [*lines, last[:-1]]:
        opening = _FENCE.match(line) if not fence else None
        if opening is not None and line.endswith("\n"):
            fence, word, content = opening[1], opening[2].lower(), []
        elif fence and line.strip(" \t\n") == fence:
            found.append((word, "".join(content)))
            fence = ""
        elif fence:
            content.append(line)
    return [*found, (word, "".join(content))] if fence else found


def program_of(text: str, fence: str = "tl") -> str:
    """Give the program that an answer holds.

    Blocks fenced by `fence` count; where there is none, a block without a word does. Of several blocks the last one
    counts if it is the longest (a draft may stand before it); else the answer has no one program.

    Raises:
        NoProgram: there is no block, only blocks of another kind, several that contend, or one too long.
    """
    found = blocks(text)
    named = [content for word, content in found if word == fence] or [content for word, content in found if not word]
    if not named:
        other = sorted({word for word, _ in found if word})
        there = f"blocks fenced by {', '.join(other)} only" if other else "no fenced block"
        raise NoProgram(f"the answer has {there}", hint=f"give the whole program in one block fenced by ```{fence}")
    program = named[-1]
    if len(program) < max(map(len, named)):
        raise NoProgram(
            f"the answer has {len(named)} blocks fenced by {fence}, and the last is not the longest",
            hint="give the whole program once, in one block",
        )
    if len(program) > MOST_CHARACTERS:
        raise NoProgram(f"the program has over {MOST_CHARACTERS} characters", hint="give the program alone")
    return clean(program).strip("\n") + "\n"


def clean(text: str) -> str:
    """Take out control characters, terminal escapes, marks that turn the direction of writing, and what is not seen."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n"))
    return text if text.isascii() else "".join(c for c in text if unicodedata.category(c) not in _UNSEEN)
