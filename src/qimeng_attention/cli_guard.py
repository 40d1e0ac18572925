"""What every command shares: errors become a line and an exit code, with `--json` a JSON value.

Not here: the commands (cli.py, cli_machine.py).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from qimeng_attention import terminal
from qimeng_attention.errors import EnvironmentMissing, QimengError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value to stdout.")]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn every error a user can meet into a line and an exit code; no traceback reaches a user."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            command(*args, **kwargs)
        except QimengError as error:
            terminal.print_error(error, as_json)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except (OSError, MemoryError) as error:
            terminal.print_error(
                EnvironmentMissing(
                    f"{type(error).__name__}: {error}", hint="check the path, its rights and the space left"
                ),
                as_json,
            )
            raise typer.Exit(3) from None
        except typer.Exit:
            raise
        except Exception as error:  # our own fault: said in a line, with what a report needs
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            fault = QimengError(
                f"internal error at {where}: {type(error).__name__}: {error}", hint="please report it with the input"
            )
            terminal.print_error(fault, as_json)
            raise typer.Exit(3) from None

    return run
