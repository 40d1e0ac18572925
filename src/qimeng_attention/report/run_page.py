"""What is shown of a run of a model, gathered from its transcript once for every way to show it.

What came of answers is what the run noted; where a transcript has no notes it is what the model was told of them, and
of an answer that nobody spoke of afterwards it is not known. Numbers that nobody reported stay None. All texts are made
plain: they are a model's, and others'.

Not here: how it looks (run_terminal.py, html_page.py), transcripts (llm/transcript.py).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qimeng_attention.author.llm.answers import NoProgram, program_of
from qimeng_attention.author.llm.understanding import NotUnderstood, understood
from qimeng_attention.errors import QimengError, SpecError
from qimeng_attention.llm.chat import ClientFault, Reply
from qimeng_attention.llm.transcript import Call, Record, TranscriptError
from qimeng_attention.plain_text import cleaned, plain
from qimeng_attention.report.understood import Understood, understand
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow.authoring import with_schedule
from qimeng_attention.workflow.noted import ATTEMPT, OUTCOME, UNDERSTOOD

NOTED, TOLD, UNKNOWN = "noted", "told", "unknown"
BEFORE = ("understand", "sketch", "atoms")  # stages whose answers hold no kernel
_FENCES = ("tl", "cuda")
# How the prompt of a repair begins (author/llm/prompts/repair.j2), for transcripts without notes.
_REFUSED = re.compile(r"The program was refused \((\w+)\):\n+(`{3,})\n(.*?)\n\2", re.DOTALL)
_JUDGED = re.compile(r"The program runs, and what it computes is not what was asked for:\n+(.*)\n\n", re.DOTALL)
_UNREAD = re.compile(r"I could not read a program in your answer: (.*)\n\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Said:
    """One call: what was asked and what came of it."""

    number: int
    stage: str
    sample: int
    tried: int  # which try of the same conversation
    date: str
    prompt: tuple[tuple[str, str], ...]  # turns that no earlier call held: role and text
    prompt_characters: int  # of the whole conversation
    answer: str
    answer_characters: int
    end: str  # "answered", the kind of fault, or "stopped in the middle"
    why: str  # of a fault
    model: str
    input_tokens: int | None
    output_tokens: int | None
    usd: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Tried:
    """An answer that should hold a program, and how far it came."""

    sample: int
    stage: str
    known: str  # "noted" by the run, "told" to the model, or "unknown"
    passed: tuple[str, ...]
    failed: str  # the gate that refused it
    codes: tuple[str, ...]
    findings: str
    seconds: float | None  # of the gates
    language: str  # "tl", "cuda", or "" where the answer holds no one program
    program: tuple[str, ...]
    added: frozenset[int]  # lines of it, from 1, that are not the model's


@dataclass(frozen=True, slots=True)
class RunPage:
    """Everything that is shown of one run."""

    name: str
    words: str
    date: str
    facts: tuple[tuple[str, str], ...]  # model, client, method, parameters
    understood: Understood | None
    meant: tuple[tuple[str, str], ...]  # what was understood beside a description
    calls: tuple[Said, ...]
    attempts: tuple[Tried, ...]
    outcome: tuple[tuple[str, str], ...]
    total: tuple[tuple[str, str], ...]

    @property
    def last(self) -> Tried | None:
        """Give the attempt whose program is shown: the last one that no gate refused, else the last."""
        whole = [a for a in self.attempts if a.known == NOTED and not a.failed]
        return next(iter(whole or reversed(self.attempts)), None)

    def to_json(self, *, full: bool = False) -> dict[str, Any]:
        """Give the same as JSON; prompts, answers and programs only with `full`."""
        calls = [asdict(c) for c in self.calls]
        attempts = [{**asdict(a), "added": sorted(a.added)} for a in self.attempts]
        for entry in () if full else (*calls, *attempts):
            for name in {"prompt", "answer", "program"} & entry.keys():
                del entry[name]
        return {
            "run": self.name,
            "words": self.words,
            "date": self.date,
            **{name: dict(getattr(self, name)) for name in ("facts", "meant", "outcome", "total")},
            "formula": None if self.understood is None else [list(line) for line in self.understood.formula],
            "calls": calls,
            "attempts": attempts,
        }


def run_page(record: Record, name: str, further: Sequence[tuple[str, str]] = ()) -> RunPage:
    """Gather what is shown of a transcript; `further` is what others say of its outcome.

    Raises:
        TranscriptError: something in it is of another kind than it should be.
    """
    try:
        return _gathered(record, name, further)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TranscriptError(
            f"the transcript {name} holds something of another kind than it should ({type(error).__name__})",
            hint="transcripts are not edited: restore it",
        ) from error


def _gathered(record: Record, name: str, further: Sequence[tuple[str, str]]) -> RunPage:
    calls = tuple(_said(record))
    attempts = tuple(_attempts(record))
    read, meant = _understood(record)
    return RunPage(
        name=plain(name),
        words=plain(record.words).strip(),
        date=plain(record.date),
        facts=tuple(_facts(record)),
        understood=read,
        meant=meant,
        calls=calls,
        attempts=attempts,
        outcome=(*_outcome(record, attempts), *((what, plain(said)) for what, said in further)),
        total=tuple(_total(calls)),
    )


# ------------------------------------------------------------------ calls
def _said(record: Record) -> Iterator[Said]:
    seen: set[tuple[tuple[str, str], ...]] = set()
    for call in record.calls:
        turns = tuple((m.role, m.text) for m in call.request.messages)
        known = max((n for n in range(len(turns) + 1) if turns[:n] in seen), default=0)
        end, usage = call.end, call.usage
        answer = end.text if isinstance(end, Reply) else end.raw if isinstance(end, ClientFault) else ""
        if isinstance(end, Reply):
            seen.add((*turns, ("assistant", end.text)))
        yield Said(
            number=call.number,
            stage=plain(call.request.stage),
            sample=int(call.request.sample),
            tried=int(call.attempt),
            date=plain(call.date),
            prompt=tuple((role, plain(text)) for role, text in turns[known:]),
            prompt_characters=sum(len(text) for _, text in turns),
            answer=plain(answer),
            answer_characters=len(answer),
            end="answered" if isinstance(end, Reply) else end.kind if end is not None else "stopped in the middle",
            why=plain(end.message) if isinstance(end, ClientFault) else "",
            model=plain(end.model) if isinstance(end, Reply) else "",
            input_tokens=None if usage.input_tokens is None else int(usage.input_tokens),
            output_tokens=None if usage.output_tokens is None else int(usage.output_tokens),
            usd=None if usage.usd is None else float(usage.usd),
            seconds=float(call.seconds),
        )


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    models = dict.fromkeys(c.end.model for c in record.calls if isinstance(c.end, Reply))
    yield "model", plain(", ".join(models)) or "none has answered"
    yield "client", plain(", ".join(dict.fromkeys(c.client for c in record.calls))) or "none was asked"
    for name, value in record.facts.items():
        yield plain(str(name)), plain(str(value))
    for name in ("max_tokens", "temperature", "timeout_s"):
        values = dict.fromkeys(getattr(c.request, name) for c in record.calls)
        if values:
            told = ("the provider's" if name == "temperature" and v is None else str(v) for v in values)
            yield name, ", ".join(told)


def _total(calls: tuple[Said, ...]) -> Iterator[tuple[str, str]]:
    """Add up what is known, and say what is not."""
    made = [c for c in calls if c.end not in ("waiting", "budget reached", "no recording", "stale")]
    yield "calls", str(len(made))
    for name, form in (("input_tokens", "{:,}"), ("output_tokens", "{:,}"), ("usd", "${:.4f}")):
        values = [getattr(c, name) for c in made]
        known = [v for v in values if v is not None]
        lost = len(values) - len(known)
        told = form.format(sum(known)) if known else ""
        more = f"{lost} call{'s' if lost > 1 else ''} unknown" if lost else ""
        yield name.replace("_", " "), " and ".join(filter(None, (told, more))) or form.format(0)
    yield "seconds of the model", f"{sum(c.seconds for c in made):.1f}"


# ------------------------------------------------------------------ what was understood
def _understood(record: Record) -> tuple[Understood | None, tuple[tuple[str, str], ...]]:
    """Give what the run noted, else what the model's last answer to the words says."""
    note = _last_note(record, UNDERSTOOD)
    if note is None:
        note = _reread(record)
    facts = [(name, plain(str(note[name]))) for name in ("target", "meaning", "why", "refused") if note.get(name)]
    read = None
    if isinstance(note.get("spec"), dict) and not note.get("beyond"):
        try:
            read = understand(AttentionSpec.make(**cleaned(note["spec"])))
        except (QimengError, TypeError):
            facts.append(("spec", "is none of this version"))
    return read, tuple(facts)


def _reread(record: Record) -> dict[str, Any]:
    answers = [c.end.text for c in record.calls if c.request.stage == "understand" and isinstance(c.end, Reply)]
    try:
        found = understood(answers[-1], record.words) if answers else None
    except NotUnderstood:
        return {}
    except SpecError as refused:
        return {"refused": refused.message}
    if found is None:
        return {}
    spec = found.spec.model_dump(mode="json", exclude_defaults=True)
    return {"target": found.target, "meaning": found.meaning, "why": found.why, "spec": spec, "beyond": found.beyond}


def _last_note(record: Record, about: str) -> dict[str, Any] | None:
    return next((n for n in reversed(record.notes) if n.get("about") == about), None)


# ------------------------------------------------------------------ attempts
def _attempts(record: Record) -> Iterator[Tried]:
    """Give each answer that should hold a program, sample by sample."""
    answered = [c for c in record.calls if isinstance(c.end, Reply) and c.request.stage not in BEFORE]
    for call in sorted(answered, key=lambda c: c.request.sample):
        assert isinstance(call.end, Reply)
        language, program, added = _program(call.end.text)
        place = {"sample": call.request.sample, "stage": call.request.stage}
        note = next((n for n in reversed(record.notes) if _speaks_of(n, place)), None)
        known, passed, failed, codes, findings, seconds = _noted(note) if note else _told(record, call)
        yield Tried(
            sample=call.request.sample,
            stage=plain(call.request.stage),
            known=known,
            passed=passed,
            failed=failed,
            codes=codes,
            findings=findings,
            seconds=seconds,
            language=language,
            program=program,
            added=added,
        )


def _speaks_of(note: dict[str, Any], place: dict[str, Any]) -> bool:
    return note.get("about") == ATTEMPT and all(note.get(name) == value for name, value in place.items())


_Found = tuple[str, tuple[str, ...], str, tuple[str, ...], str, float | None]


def _noted(note: dict[str, Any]) -> _Found:
    n = cleaned(note)
    passed, codes = (tuple(map(str, n.get(name) or ())) for name in ("passed", "codes"))
    return NOTED, passed, str(n.get("failed", "")), codes, str(n.get("findings", "")), n.get("seconds")


def _told(record: Record, call: Call) -> _Found:
    """Give what the next turn of the conversation tells the model of its answer."""
    assert isinstance(call.end, Reply)
    said = (*((m.role, m.text) for m in call.request.messages), ("assistant", call.end.text))
    for later in record.calls:
        turns = [(m.role, m.text) for m in later.request.messages]
        if tuple(turns[: len(said)]) == said and len(turns) == len(said) + 1:
            text = turns[-1][1]
            for pattern, gate in ((_UNREAD, "answer"), (_JUDGED, "judge")):
                if (match := pattern.match(text)) is not None:
                    return TOLD, (), gate, (), plain(match[1]), None
            if (match := _REFUSED.match(text)) is not None:
                codes = tuple(dict.fromkeys(re.findall(r"\bTL\d{3}\b", match[3])))
                return TOLD, (), match[1], codes, plain(match[3]), None
            return TOLD, (), "a gate", (), plain(text), None
    return UNKNOWN, (), "", (), "", None


def _program(text: str) -> tuple[str, tuple[str, ...], frozenset[int]]:
    """Give the program of an answer with the schedule that was added to it, and which lines that are."""
    for fence in _FENCES:
        try:
            program = program_of(text, fence)
        except NoProgram:
            continue
        whole = program
        if fence == "tl":
            with contextlib.suppress(QimengError):
                whole, _ = with_schedule(program)
        lines = plain(whole).removesuffix("\n").split("\n")
        mine = plain(program).removesuffix("\n").count("\n") + 1
        return fence, tuple(lines), frozenset(range(mine + 1, len(lines) + 1))
    return "", (), frozenset()


def _outcome(record: Record, attempts: tuple[Tried, ...]) -> Iterator[tuple[str, str]]:
    repairs = sum(a.stage.startswith("repair") for a in attempts)
    yield "repairs", str(repairs)
    note = _last_note(record, OUTCOME)
    if note is None:
        last = attempts[-1] if attempts else None
        refused = last is not None and last.known == NOTED and last.failed
        yield "outcome", f"refused by {last.failed}" if last and refused else "the transcript does not say"
    else:
        note = cleaned(note)
        for name in ("verdict", "bundle"):
            yield name, str(note.get(name) or "none")
        if isinstance(note.get("kept"), int) and len({a.sample for a in attempts}) > 1:
            yield "kept", f"sample {note['kept'] + 1}"
    for other in record.notes:
        if other.get("about") not in (UNDERSTOOD, ATTEMPT, OUTCOME):
            told = {n: v for n, v in cleaned(other).items() if n not in ("event", "date", "about")}
            yield str(cleaned(other.get("about"))), ", ".join(f"{n} {v}" for n, v in told.items())
