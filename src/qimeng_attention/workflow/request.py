"""A request in words to what is to be made: the model says what it means, a person confirms it."""

from __future__ import annotations

from qimeng_attention.author.llm import render, understanding
from qimeng_attention.author.llm.quoting import in_a_line
from qimeng_attention.author.llm.understanding import NotUnderstood, Understood
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.errors import SpecError
from qimeng_attention.judge import Operator
from qimeng_attention.llm.chat import Client, Message, Request

TRIES = 3


def understand_words(words: str, client: Client, number: int = 0) -> Understood:
    """Ask a model what words mean; an answer of another form is asked for again, with what is wrong.

    Args:
        words: the request.
        client: who answers.
        number: of the sample.

    Raises:
        SpecError: nothing that could be made is asked for.
        NotUnderstood: three answers were no description.
        ClientFault: no answer came.
    """
    messages: tuple[Message, ...] = (Message("user", understanding.prompt(words)),)
    for left in range(TRIES - 1, -1, -1):
        reply = client.complete(Request(messages, "understand", number))
        try:
            return readable(understanding.understood(reply.text, words))
        except NotUnderstood as fault:
            if not left:
                raise
            again = render.template("again", {"message": in_a_line(fault.message), "hint": in_a_line(fault.hint)})
            messages = (*messages, Message("assistant", reply.text), Message("user", again))
    raise AssertionError("the loop returns or raises")


def readable(found: Understood) -> Understood:
    """Give a description whose mask and score a reference can read.

    Raises:
        NotUnderstood: it cannot; the model is told, and may mend it.
    """
    try:
        Operator.of(found.spec)
    except SpecError as error:
        raise NotUnderstood(f"spec: {error.message}", hint=error.hint) from None
    return found


def wanted_of(found: Understood) -> Wanted:
    """Give what the author is asked to write: the words, and what they were taken to mean."""
    exactly = found.meaning if found.beyond else "\n".join(f"- {line}" for line in found.spec.describe()[1:])
    words = f"{found.words.strip()}\n\nExactly:\n{exactly}"
    return Wanted.of_spec(found.spec, words)
