"""Words to a description: what is asked, and what an answer must be."""

from __future__ import annotations

import pytest

from qimeng_attention.author.llm.understanding import NotUnderstood, prompt, understood
from qimeng_attention.errors import SpecError
from qimeng_attention.llm.chat import Reply, Request
from qimeng_attention.workflow.request import understand_words, wanted_of

WORDS = "causal GQA 32/8, head dim 128, bf16, with softcap 30, for an A100"
RIGHT = "```yaml\nkind: spec\ntarget: A100\nspec: {Hq: 32, Hk: 8, mask: causal, softcap: 30}\nwhy: two outputs\n```"


class Answers:
    name = "answers"

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), list[Request]()

    def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        return Reply(self.texts.pop(0), "answers")


def test_a_description_is_read_and_its_meaning_goes_to_the_author() -> None:
    found = understood(RIGHT, WORDS)

    assert (found.spec.Hq, found.spec.Hk, found.spec.softcap, found.target, found.beyond) == (
        32,
        8,
        30.0,
        "A100",
        False,
    )
    wanted = wanted_of(found)
    assert WORDS in wanted.words
    assert "then score = 30" in wanted.words
    assert "kv_idx <= q_idx + Sk - Sq" in wanted.words
    assert wanted.lse
    assert "Size D = 128" in wanted.interface()


def test_what_no_description_says_stays_words_with_formulas() -> None:
    answer = "```yaml\nkind: operator\nspec: {Hq: 8, Dqk: 64, Dv: 128, outputs: [O]}\nmeaning: O = mean of V\n```"
    found = understood(answer, "the mean")
    wanted = wanted_of(found)

    assert found.beyond
    assert "O = mean of V" in wanted.words
    assert not wanted.lse
    assert "Size D = 64, Dv = 128" in wanted.interface()


def test_a_refusal_is_passed_on_as_the_models() -> None:
    with pytest.raises(SpecError, match=r"the model takes this for .*: dropout"):
        understood("```yaml\nkind: refused\nwhy: dropout\n```", "with dropout")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("no block", "no fenced block"),
        ("```yaml\n- 1\n```", "no key `kind`"),
        ("```yaml\nkind: 'spec\n```", "no YAML"),
        ("```yaml\nkind: spec\nspec: [1]\n```", "no mapping"),
        ("```yaml\nkind: spec\nspec: {Hq: 32, Hk: 5}\n```", "does not divide"),
        ("```yaml\nkind: spec\nspec: {bias: 1}\n```", "bias"),
        ("```yaml\nkind: spec\ntarget: A1000\n```", "A1000"),
        ("```yaml\nkind: operator\n```", "no `meaning`"),
        ("```yaml\nkind: operator\nspec: {mask: causal}\nmeaning: x\n```", "has no mask"),
        ("```yaml\nkind: spec\nrun: rm\n```", "unknown keys run"),
    ],
)
def test_other_answers_say_what_is_wrong_with_them(answer: str, says: str) -> None:
    with pytest.raises(NotUnderstood) as caught:
        understood(answer, "words")
    assert says in str(caught.value)


def test_an_unusable_answer_is_asked_for_again_with_what_is_wrong() -> None:
    client = Answers("hm", RIGHT)

    assert understand_words(WORDS, client).spec.Hk == 8
    assert "no fenced block" in client.asked[1].messages[-1].text
    with pytest.raises(NotUnderstood):
        understand_words(WORDS, Answers("a", "b", "c"))


def test_words_are_cleaned_and_bounded() -> None:
    assert "\x1b" not in prompt("causal \x1b[31mattention")
    for words in ("", " \n", "x" * 20_001):
        with pytest.raises(SpecError):
            prompt(words)
