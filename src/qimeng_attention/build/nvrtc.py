"""CUDA C++ text to a cubin, in this process, through NVRTC; its errors mapped back to lines of TL.

Generated sources carry `// tl:12 Copy K ...` before each group of statements; an error belongs to the nearest
such mark above the line that it, or the instantiation it came from, names.

Not here: where NVRTC and its headers are (toolchain.py), keeping cubins (cache.py), reading them (sass.py).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

from qimeng_attention.build.toolchain import INSTALL, Toolchain, find_toolchain
from qimeng_attention.errors import NOWHERE, BuildError, Diagnostic, EnvironmentMissing, Span

MAX_DIAGNOSTICS = 20  # one mistake in a template can repeat for pages
_TAIL_LINES = 20

_ALWAYS = (
    "-std=c++17",
    "--device-as-default-execution-space",  # CUTLASS's plain constexpr functions are host functions otherwise
    # NOTE: from 13.2 on, that CCCL header declares std::tuple_size in a way that clashes with CUTLASS 4.2's
    # own declaration; its include guard skips it, and nothing in CuTe misses it.
    "-D_CUDA_STD___TUPLE_STRUCTURED_BINDINGS_H",
    "--ptxas-options=-v",  # registers and spills go to the log
    "--no-cache",  # what NVRTC keeps from 12.9 on, where there is a driver, comes without ptxas's words on it
)


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """What may differ from kernel to kernel; all of it is part of the cache key."""

    fast_math: bool = False  # all of the three below, and fused multiply-add
    flush_denormals: bool = False
    approximate_division: bool = False
    approximate_square_root: bool = False
    max_registers: int | None = None
    line_info: bool = False
    defines: tuple[str, ...] = ()  # "NAME" or "NAME=VALUE"
    extra: tuple[str, ...] = ()  # passed on as they are

    def flags(self) -> tuple[str, ...]:
        """Give NVRTC's options, without the architecture and include folders."""
        chosen = {
            "--use_fast_math": self.fast_math,
            "--ftz=true": self.flush_denormals,
            "--prec-div=false": self.approximate_division,
            "--prec-sqrt=false": self.approximate_square_root,
            f"--maxrregcount={self.max_registers}": self.max_registers is not None,
            "-lineinfo": self.line_info,
        }
        switched = [flag for flag, on in chosen.items() if on]
        return (*_ALWAYS, *switched, *(f"-D{d}" for d in self.defines), *self.extra)


@dataclass(frozen=True, slots=True)
class CompileResult:
    """What a compilation gave; `log` has ptxas's lines on registers and spills."""

    cubin: bytes
    log: str
    seconds: float


class CompileError(BuildError):
    """NVRTC refused a source; `log` holds all its words, `diagnostics` its errors with their lines of TL."""

    def __init__(self, message: str, *, hint: str = "", log: str = "", diagnostics: Sequence[Diagnostic] = ()) -> None:
        self.log, self.diagnostics = log, tuple(diagnostics)
        tail = "\n".join(log.splitlines()[-_TAIL_LINES:])
        super().__init__(message, hint=hint, tail=tail, log=log, diagnostics=[d.to_json() for d in diagnostics])


def compile_cubin(
    source: str,
    *,
    arch: str,
    name: str,
    toolchain: Toolchain | None = None,
    include: Sequence[Path] = (),
    headers: Mapping[str, str] | None = None,
    options: CompileOptions | None = None,
) -> CompileResult:
    """Compile CUDA C++ for one architecture.

    Args:
        source: the text; kernels are `extern "C"`, so that they keep their names.
        arch: as NVRTC takes it, "sm_80" or "sm_90a".
        name: what the compiler calls the text in messages (`name.cu`).
        toolchain: None finds the installed one.
        include: folders searched before the tool chain's.
        headers: texts by the name that the source includes them under.
        options: None takes the defaults.

    Raises:
        CompileError: NVRTC or ptxas refused, with diagnostics of all errors.
        EnvironmentMissing: a part of the tool chain is not there.
    """
    tools = toolchain or find_toolchain()
    folders = [f"-I{folder}" for folder in (*include, *tools.includes)]
    flags = [f"-arch={arch}", *(options or CompileOptions()).flags(), *folders]
    nvrtc = _import_nvrtc()
    started = time.perf_counter()
    with _program(nvrtc, source, f"{name}.cu", headers or {}) as program:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        log = log.replace("\0", "").strip()
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise _refusal(f"{name}.cu", arch, source, log or status.name)
        cubin = _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    return CompileResult(cubin, log, time.perf_counter() - started)


def _import_nvrtc() -> Any:
    """Import the bindings and load the library, here, so that importing the package needs neither."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnvironmentMissing(f"NVRTC cannot be loaded: {reason}", hint=f"run: {INSTALL}") from error
    return nvrtc


@contextmanager
def _program(nvrtc: Any, source: str, file: str, headers: Mapping[str, str]) -> Iterator[Any]:
    try:
        text = source.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, as a careless JSON string may hold
        hint = f"remove the character at offset {error.start}"
        raise CompileError(f"{file} holds a character that is no Unicode text", hint=hint) from error
    texts = [header.encode() for header in headers.values()]
    names = [name.encode() for name in headers]
    status, program = nvrtc.nvrtcCreateProgram(text, file.encode(), len(texts), texts, names)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(
            f"NVRTC cannot take {file}: {status.name}", hint="see the log of the compiler", log=status.name
        )
    try:
        yield program
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _text(size_of: Any, read: Any, program: Any) -> bytes:
    _, size = size_of(program)
    buffer = bytearray(size)  # the bindings write into it
    read(program, buffer)
    return bytes(buffer)


def _refusal(file: str, arch: str, source: str, log: str) -> CompileError:
    diagnostics = diagnose(log, source, file)
    first = diagnostics[0].message if diagnostics else (log.splitlines() or ["no reason given"])[0]
    hint = diagnostics[0].hint if diagnostics else "see the log of the compiler"
    return CompileError(f"NVRTC refused {file} for {arch}: {first}", hint=hint, log=log, diagnostics=diagnostics)


_ERROR = re.compile(r"^(?P<file>[^\n(]+?)\((?P<line>\d+)\): (?:catastrophic )?error(?: #[\w-]+)?: (?P<text>.*)$")
_FRAME = re.compile(r"at line (?P<line>\d+)(?: of \"?(?P<file>[^\"\n]+?)\"?)?\s*$")
_PTXAS = re.compile(
    r"^(?:ptxas (?:[^;\n]+, line \d+; )?(?:error|fatal)|nvrtc: error)\s*: (?P<text>.*)$"  # the line is one of PTX
)
_MARK = re.compile(r"^\s*// tl:(\d+)\b", re.MULTILINE)


def diagnose(log: str, source: str, file: str) -> list[Diagnostic]:
    """Read a compiler's log: CU001 for errors of the front end, CU002 for those of ptxas and of options, at
    most 20.

    The span's line is the line of TL, or NOWHERE where the place has no `// tl:N` mark above it; the hint
    names the line of C++. Of the errors that one line raises in headers only the first is given: the others
    follow from it.
    """
    found: list[Diagnostic] = []
    lines_seen: set[int] = set()
    for error, context in _errors(log):
        if "line" not in error:
            found.append(Diagnostic("CU002", error["text"], "change what the message names: a size, or an option"))
            continue
        line, span = _origin(error, context, source, file)
        if error["file"] != file and line in lines_seen:
            continue
        lines_seen.add(line)
        hint = _place(error["file"], int(error["line"]), line, source, file)
        found.append(Diagnostic("CU001", error["text"], hint, span))
    return found[:MAX_DIAGNOSTICS]


def _errors(log: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield each error's fields with the lines below it that say where it was instantiated."""
    lines = log.splitlines()
    heads = [(i, m) for i, line in enumerate(lines) if (m := _ERROR.match(line) or _PTXAS.match(line))]
    for (start, match), (end, _) in pairwise([*heads, (len(lines), None)]):
        if match:
            yield match.groupdict(), lines[start + 1 : end]


def _origin(error: Mapping[str, str], context: Sequence[str], source: str, file: str) -> tuple[int, Span]:
    """Give the line of the generated text that an error comes from (0 if none is named) and that of TL.

    Of the error's own line and those of the instantiations, innermost first, the first one below a mark is
    taken: a helper at the top of the text is not where the fault is.
    """
    frames = [frame for text in context if (frame := _FRAME.search(text))]
    # A frame that names no file lies in the file of the error itself.
    places = [(error["file"], error["line"]), *((f["file"] or error["file"], f["line"]) for f in frames)]
    lines = [int(line) for place, line in places if PurePath(place).name == file]
    spans = [(line, _tl_span(source, line)) for line in lines]
    marked = [(line, span) for line, span in spans if span != NOWHERE]
    return next(iter(marked or spans), (0, NOWHERE))


def _place(header: str, header_line: int, line: int, source: str, file: str) -> str:
    """Say where in the C++ the compiler stopped, without folders: they differ from machine to machine."""
    lines = source.splitlines()
    quoted = f"{file} line {line}: {lines[line - 1].strip()}" if 1 <= line <= len(lines) else ""
    if header == file and header_line == line:
        return f"see {quoted}"
    place = f"{PurePath(header).name} line {header_line}"
    return f"see {quoted} (raised in {place})" if quoted else f"see {place}"


def _tl_span(source: str, line: int) -> Span:
    above = "\n".join(source.splitlines()[:line])
    marks = _MARK.findall(above)
    return Span(line=int(marks[-1])) if marks else NOWHERE
