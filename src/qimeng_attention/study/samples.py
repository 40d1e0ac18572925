"""The samples of a study, a JSON line each, in a file that is only ever added to: a study cut short goes on.

    store = SampleStore(Path("study.jsonl"))
    for key in store.missing(plan(...)):
        ...
        store.record(sample)

Several threads or processes may add to one file. A line that was cut off while it was written is dropped, with the
sample it would have been; any other broken line is an error.

Not here: what a sample is (record.py).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from qimeng_attention.errors import SpecError
from qimeng_attention.study.record import Key, Sample


class SampleStore:
    """A file of samples."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def samples(self) -> list[Sample]:
        """Read every sample.

        Raises:
            SpecError: a line is broken, or a sample is there twice.
        """
        if not self.path.is_file():
            return []
        found: dict[Key, Sample] = {}
        for number, line in _lines(self.path.read_bytes()):
            try:
                sample = Sample.model_validate_json(line)
            except ValidationError as error:
                reason = error.errors()[0]
                where = ".".join(map(str, reason["loc"]))
                message = f"{self.path}:{number}: {where}: {reason['msg']}"
                raise SpecError(message, hint="restore the line, or remove it", field="samples") from None
            if sample.key in found:
                message = f"{self.path}:{number}: {describe(sample.key)} is there already"
                raise SpecError(message, hint="keep one of them", field="samples")
            found[sample.key] = sample
        return list(found.values())

    def missing(self, planned: Iterable[Key]) -> list[Key]:
        """Give what of a plan has no sample yet, in its order."""
        there = {s.key for s in self.samples()}
        return [key for key in planned if key not in there]

    def record(self, sample: Sample) -> None:
        """Add a sample; once this returns, it is on disk.

        Raises:
            SpecError: it is there already.
        """
        line = json.dumps(sample.model_dump(mode="json", exclude_defaults=True)).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path) as file:
            if sample.key in {s.key for s in self.samples()}:
                raise SpecError(
                    f"{describe(sample.key)} is recorded already in {self.path}",
                    hint="ask `missing` what is left, or take another number of the sample",
                    field="sample",
                )
            whole = _whole(os.pread(file, os.fstat(file).st_size, 0))
            os.ftruncate(file, whole)
            os.pwrite(file, line, whole)
            os.fsync(file)


def record(path: Path, sample: Sample) -> None:
    """Add a sample to a file: what a runner calls when a run is over.

    Raises:
        SpecError: the sample is there already, or the file is broken.
    """
    SampleStore(path).record(sample)


def read_samples(paths: Iterable[Path]) -> list[Sample]:
    """Read the samples of several files as one study.

    Raises:
        SpecError: a file is missing, empty or broken, or two hold the same sample.
    """
    found: dict[Key, Sample] = {}
    for path in paths:
        samples = SampleStore(path).samples()
        if not samples:
            raise SpecError(f"{path} holds no samples", hint="name a file that `record` wrote", field="samples")
        for sample in samples:
            if sample.key in found:
                raise SpecError(f"{path}: {describe(sample.key)} is in another file too", hint="name one of them")
            found[sample.key] = sample
    return list(found.values())


def describe(key: Key) -> str:
    """Name a sample in words."""
    request, method, model, round_, sample = key
    return f"sample {sample} of {request}, {method}, {model}, round {round_}"


def _whole(data: bytes) -> int:
    """Give the length of what ends with a line's end."""
    return data.rfind(b"\n") + 1


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(data[: _whole(data)].split(b"\n"), 1):
        if line.strip():
            yield number, line


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a file for one writer at a time; the lock goes with the process."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)
