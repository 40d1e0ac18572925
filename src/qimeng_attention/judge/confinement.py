"""What a reference function may not do in its process: write outside of its folder, start processes, use the network.

An audit hook, which Python code cannot take away again, refuses by PermissionError what a function that computes
numbers has no need of. It sees what Python does, not what native code does by itself: this is a fence for files of
others that do more than they say, and no sandbox for code that is written to break out.

Not here: the process, its environment, its limits (reference_process.py, reference_worker.py).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MODES = frozenset("wax+")
# Events of files that are changed without being opened: which arguments are paths, and the folder each is relative to.
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.chflags": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.link": ((0, 2), (1, 3)),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.removexattr": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.setxattr": ((0, None),),
    "os.symlink": ((0, None), (1, 2)),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
}
_REFUSED = {
    **dict.fromkeys(
        ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn",
         "subprocess.Popen"), "starts no processes"),
    **dict.fromkeys(("os.kill", "os.killpg"), "ends no processes"),
    **dict.fromkeys(
        ("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname",
         "socket.sendmsg", "socket.sendto"), "uses no network"),
}  # fmt: skip


def confine(folder: Path) -> None:
    """Let this process write below a folder alone, start nothing, and reach nobody, from now on."""
    root = os.path.realpath(folder) + os.sep
    sys.dont_write_bytecode = True  # beside a person's file

    def inside(path: Any, folder: Any = None) -> bool:
        try:
            text = f"/proc/self/fd/{path}" if isinstance(path, int) else os.fsdecode(path)
            if folder not in (None, -1):
                text = os.path.join(f"/proc/self/fd/{folder}", text)  # noqa: PTH118
            # SAFETY: links are followed, so one in the folder that leads out of it is outside.
            return os.path.realpath(text).startswith(root) or text == os.devnull
        except (OSError, TypeError, ValueError):
            return False

    def opens(path: Any, mode: Any, flags: Any) -> bool:
        """Tell whether a file may be opened so."""
        writes = bool(isinstance(flags, int) and flags & _WRITES) or bool(isinstance(mode, str) and set(mode) & _MODES)
        if not writes or isinstance(path, int):  # a number is of a file that is open already
            return True
        # SAFETY: os.open, which gives no mode, does not tell which folder a path is relative to.
        return inside(path) and (mode is not None or os.fsdecode(path)[:1] == "/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not opens(*arguments):
                raise PermissionError("a reference writes no files but in its own folder, the working directory")
        elif event in _REFUSED:
            raise PermissionError(f"a reference {_REFUSED[event]}")
        elif event in _CHANGES:
            given = dict(enumerate(arguments))
            if not all(inside(given.get(p), given.get(d)) for p, d in _CHANGES[event]):  # type: ignore[arg-type]
                raise PermissionError("a reference changes no files but in its own folder, the working directory")

    sys.addaudithook(hook)
