"""A folder in which somebody answers: a person, or an agent that sees nothing but the prompt.

    003-sketch-s0-1f2e3d4c.prompt.md    the prompt, word for word, written by this client
    003-sketch-s0-1f2e3d4c.answer.md    the answer, written by somebody, its last line `<!-- end -->`

An answer without its last line is still being written. The same request finds the same files, so a run may be stopped
at any time and started again.

Not here: what a prompt says (author/llm).
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qimeng_attention.llm.chat import Empty, Garbled, Misconfigured, Reply, Request, Stale, Waiting

PROMPT, ANSWER, MODEL = ".prompt.md", ".answer.md", "model.txt"
END = "<!-- end -->"
POLL_S = 1.0

README = f"""# Prompts and answers

Each file `NAME{PROMPT}` is what a model is asked, word for word.
The answer goes into `NAME{ANSWER}` beside it, as UTF-8.
Its last line has to be `{END}`: until that line is there, the answer counts as still being written.
The line itself is no part of the answer.
Then run the same command again: it finds the answer and goes on to the next prompt.
Prompts are not edited: an answer beside an edited prompt is refused.
To answer a prompt afresh, remove both of its files.
Who answers is said in `{MODEL}`, in one line: transcripts name it.
"""


class FileClient:
    """A folder of prompts and answers.

    `model` is who answers, else what the folder's `model.txt` says; `patience_s` is how long a call waits for an answer
    before it gives up.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str = "",
        patience_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.folder, self.name = folder, f"file:{folder}"
        self._model = model
        self._patience_s, self._clock, self._sleep = patience_s, clock, sleep

    def complete(self, request: Request) -> Reply:
        """Write the prompt, and give the answer if it is there.

        Raises:
            Waiting: no answer yet, or one that is still being written.
            Stale: the answer belongs to another prompt.
            Empty, Garbled: an answer without text, or one that is no UTF-8.
            Misconfigured: the folder cannot be read or written.
        """
        try:
            prompt = self._prompt(request)
            began = self._clock()
            while True:
                try:
                    return self._answer(prompt, request)
                except Waiting:
                    if self._clock() - began >= self._patience_s:
                        raise
                    self._sleep(POLL_S)
        except OSError as e:
            raise Misconfigured(
                f"{e.filename or self.folder} cannot be read or written: {e.strerror}", hint="name another folder"
            ) from e

    def _prompt(self, request: Request) -> Path:
        """Give the prompt's file, written if it was not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        readme = self.folder / "README.md"
        if not readme.exists():
            _place(readme, README)
        key, text = request.digest[:8], request.rendered()
        found = sorted(self.folder.glob(f"*-{key}{PROMPT}"))
        if found:
            if found[0].read_bytes() != text.encode("utf-8", "backslashreplace"):
                raise Stale(
                    f"{found[0]} is not the prompt that is asked now, so an answer beside it is for another one",
                    hint=f"remove {found[0].name} and {_answer_of(found[0]).name}, and run again",
                )
            return found[0]
        orphans = sorted(self.folder.glob(f"*-{key}{ANSWER}"))
        if orphans:
            raise Stale(
                f"{orphans[0]} answers a prompt that is not there",
                hint=f"remove {orphans[0].name}, and run again",
            )
        stage = re.sub(r"[^a-z0-9]+", "-", request.stage.lower()).strip("-") or "prompt"
        numbers = [int(m[1]) for p in self.folder.iterdir() if (m := re.match(r"(\d+)-", p.name))]
        name = f"{max(numbers, default=0) + 1:03d}-{stage[:40]}-s{request.sample}-{key}{PROMPT}"
        _place(self.folder / name, text)
        return self.folder / name

    def _answer(self, prompt: Path, request: Request) -> Reply:
        path = _answer_of(prompt)
        if not path.exists():
            raise Waiting(f"no answer to {prompt} yet", hint=f"write it to {path}, its last line {END}, and run again")
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as e:
            raise Garbled(
                f"{path} is no UTF-8",
                hint="write the answer again",
                raw=raw.decode("utf-8", "backslashreplace"),
                retry=False,
                may_cost=False,
            ) from e
        body, line, end = text.rstrip().rpartition(END)
        if not line or end or body.rpartition("\n")[2].strip():
            raise Waiting(
                f"{path} is still being written: its last line is not {END}",
                hint=f"end the answer with a line {END}, and run again",
            )
        if not body.strip():
            raise Empty(f"{path} holds no answer", hint="write one, or remove it", retry=False, may_cost=False)
        who = self.folder / MODEL
        model = self._model or (who.read_text("utf-8", "replace").strip() if who.is_file() else "") or self.name
        return Reply(body.rstrip().lstrip("\n") + "\n", model, facts={"answer": path.name, "prompt": prompt.name})


def _answer_of(prompt: Path) -> Path:
    return prompt.with_name(prompt.name.removesuffix(PROMPT) + ANSWER)


def _place(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=".", delete=False) as f:
        f.write(text.encode("utf-8", "backslashreplace"))
    Path(f.name).chmod(0o644)
    Path(f.name).replace(path)
