"""Jobs in processes beside the server: started, polled, cancelled, and told of by name when they die.

A process does one job at a time and is kept for the next, since starting one takes a second; a job that is cancelled
takes its process with it. All of them end with the server: `close` ends them, and where the server is killed they see
their standard input end.

Not here: what happens in such a process (worker.py).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qimeng_attention.errors import JobError
from qimeng_attention.integrations.mcp.answers import failure
from qimeng_attention.judge.process import how_it_ended, kill

# NOTE: -P: the working directory is a user's, and a file there is no module of ours.
WORKER = (sys.executable, "-P", "-m", "qimeng_attention.integrations.mcp.worker")
GRACE_S = 2.0  # from asking a process to end until it is killed
MOST_RUNNING = 4
MOST_KEPT = 64  # jobs that ended, with their answers
MOST_IDLE = 2  # processes that wait for the next job
_STATES = {True: "done", False: "failed"}


@dataclass
class Job:
    """One call of a stage."""

    name: str
    tool: str
    state: str = "running"  # running, done, failed, cancelled, died
    progress: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] | None = None  # of a job that ended
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def running(self) -> bool:
        """Tell whether it has not ended."""
        return self.state == "running"

    @property
    def seconds(self) -> float:
        """Give how long it has taken."""
        return round((self.ended or time.monotonic()) - self.started, 1)

    def end(self, state: str, answer: dict[str, Any]) -> None:
        """Keep how it ended; the first end counts."""
        if self.running:
            self.answer, self.ended = answer, time.monotonic()
            self.state = state  # last: who sees it finds the answer


class Jobs:
    """All jobs of a server."""

    def __init__(self, folder: Path, command: Sequence[str] = WORKER) -> None:
        self._folder, self._command = folder, tuple(command)
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._workers: dict[str, _Worker] = {}  # by the job that each does
        self._idle: list[_Worker] = []
        self._number = 0

    def start(self, tool: str, arguments: dict[str, Any]) -> Job:
        """Start a job.

        Raises:
            JobError: too many are running.
        """
        with self._lock:
            running = [job.name for job in self._jobs.values() if job.running]
            if len(running) >= MOST_RUNNING:
                raise JobError(
                    f"{len(running)} jobs are running: {', '.join(running)}",
                    hint="poll them until one has ended, or cancel one",
                    running=running,
                )
            self._number += 1
            job = Job(f"{tool}-{self._number}", tool)
            self._jobs[job.name] = job
            self._forget()
            self._workers[job.name] = self._given(job, {"tool": tool, "arguments": arguments})
        return job

    def _forget(self) -> None:
        ended = [name for name, job in self._jobs.items() if not job.running]
        for name in ended[: max(0, len(ended) - MOST_KEPT)]:
            del self._jobs[name]

    def _given(self, job: Job, request: dict[str, Any]) -> _Worker:
        """Give a job to a process that waits, or to a new one."""
        while self._idle:
            worker = self._idle.pop()
            if worker.take(job, request):
                return worker
            worker.end()
        worker = _Worker(self._command, self._folder, self._free, self._again)
        if not worker.take(job, request):
            job.end("died", died(job, "no sign of life"))
        return worker

    def _again(self, worker: _Worker, job: Job, request: dict[str, Any]) -> None:
        """Give a job to another process where one died while it waited, before it knew of the job."""
        with self._lock:
            self._workers.pop(job.name, None)
            if job.running:
                self._workers[job.name] = self._given(job, request)
        worker.end()

    def _free(self, worker: _Worker, job: Job, alive: bool) -> None:
        """Keep a process whose job has ended for the next one."""
        with self._lock:
            self._workers.pop(job.name, None)
            if alive and job.state in _STATES.values() and len(self._idle) < MOST_IDLE:
                self._idle.append(worker)
                return
        worker.end()

    def get(self, name: str) -> Job:
        """Find a job.

        Raises:
            JobError: there is none of that name.
        """
        with self._lock:
            if name in self._jobs:
                return self._jobs[name]
            known = list(self._jobs)[-8:]
        raise JobError(
            f"there is no job {name!r}",
            hint=f"the last ones are {', '.join(known)}" if known else "start one first: start_judge, start_build, ...",
            job=name,
        )

    def all(self) -> list[Job]:
        """Give every job that is known, in the order they were started."""
        with self._lock:
            return list(self._jobs.values())

    def cancel(self, name: str) -> Job:
        """End a job and its process; one that has ended stays as it is.

        Raises:
            JobError: there is none of that name.
        """
        job = self.get(name)
        with self._lock:
            worker = self._workers.get(name)
            _stop(job, f"job {name} was cancelled")
        if worker is not None and job.state == "cancelled":
            worker.end()
        return job

    def close(self) -> None:
        """End every process."""
        with self._lock:
            workers = [*self._workers.values(), *self._idle]
            self._idle.clear()
            for job in self._jobs.values():
                _stop(job, f"job {job.name} ended with the server")
        for worker in workers:
            worker.ask_to_end()
        for worker in workers:
            worker.end()


def _stop(job: Job, why: str) -> None:
    job.end("cancelled", failure(JobError(why, hint="start it again if it is wanted", job=job.name)))


class _Worker:
    """One process, and the thread that reads what it says."""

    def __init__(self, command: Sequence[str], folder: Path, free: Free, again: Again) -> None:
        self._free, self._again = free, again
        self._gone, self._over, self._served = False, False, False
        self._job: Job | None = None
        self._untaken: dict[str, Any] | None = None  # a request, until the process says that it has it
        self._turn, self._ending = threading.Lock(), threading.Lock()
        self._temporary = tempfile.TemporaryDirectory(prefix="qimeng-mcp-", ignore_cleanup_errors=True)
        self._errors = Path(self._temporary.name) / "errors.txt"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                start_new_session=True,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def take(self, job: Job, request: dict[str, Any]) -> bool:
        """Give it a job; tell whether it is still there to take it."""
        assert self.process.stdin is not None
        with self._turn:
            if self._gone:
                return False
            self._job, self._untaken = job, request
            try:
                self.process.stdin.write(json.dumps(request).encode() + b"\n")
                self.process.stdin.flush()
            except OSError:
                self._job = None
            return self._job is not None

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed by `end`
            for line in self.process.stdout:
                self._hear(line)
        with self._turn:
            job, self._gone = self._job, True
        if job is None:
            return
        if self._served and self._untaken is not None:
            self._again(self, job, self._untaken)
            return
        if job.running:  # nobody ended it on purpose
            job.end("died", died(job, how_it_ended(self.process, self._errors)))
        self._free(self, job, False)

    def _hear(self, line: bytes) -> None:
        job = self._job
        if job is None or not line.endswith(b"\n"):
            return
        said = json.loads(line)
        if "taken" in said:
            self._untaken, self._served = None, True
            return
        if "progress" in said:
            job.progress = said["progress"]
            return
        self._job = None
        job.end(_STATES[bool(said["answer"]["ok"])], said["answer"])
        self._free(self, job, True)

    def ask_to_end(self) -> None:
        """Ask the process to end what it started, and itself."""
        if self.process.poll() is None:
            self.process.terminate()

    def end(self) -> None:
        """End the process, and kill it if it does not hear."""
        with self._ending:
            if self._over:
                return
            self._over = True
            self.ask_to_end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_S)
            kill(self.process)
            self._temporary.cleanup()


def died(job: Job, how: str) -> dict[str, Any]:
    """Say that a job's process ended without an answer."""
    error = JobError(
        f"job {job.name} died: its process ended with {how}",
        hint="start it again; if it dies again, make the program or the sizes smaller",
        job=job.name,
    )
    return failure(error)


Free = Callable[[_Worker, Job, bool], None]
Again = Callable[[_Worker, Job, dict[str, Any]], None]
