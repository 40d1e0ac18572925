"""The command `qimeng mcp`: the stages as tools for a coding agent, spoken over standard input and output.

Not here: the tools (integrations/mcp).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qimeng_attention import terminal
from qimeng_attention.cli_guard import guarded
from qimeng_attention.errors import EnvironmentMissing


@guarded
def mcp(
    root: Annotated[
        Path, typer.Option("--root", help="The one folder that bundles are written to and read from.")
    ] = Path(),
    allow_references: Annotated[
        bool,
        typer.Option("--allow-references", help="Let the agent run functions of FILE.py:FUNCTION below the folder."),
    ] = False,
    skill: Annotated[bool, typer.Option("--skill", help="Print SKILL.md, how an agent works with the tools.")] = False,
) -> None:
    """Serve the stages as tools to a coding agent (Model Context Protocol, over stdin and stdout)."""
    from qimeng_attention.integrations import mcp as shipped

    if skill:
        sys.stdout.write(shipped.skill())
        return
    from qimeng_attention.integrations.mcp.root import Root

    opened = Root.of(root, allow_references)
    try:
        from qimeng_attention.integrations.mcp.server import build_server
    except ImportError as error:
        raise EnvironmentMissing(
            f"the SDK of the Model Context Protocol is not installed, or is older than 2.2 ({error})",
            hint="pip install 'qimeng-attention[mcp]'",
        ) from None
    if sys.stdin.isatty():
        terminal.note(f"serving {opened.folder} over stdin and stdout; a client starts this, see docs/mcp.md")
    build_server(opened).run("stdio")
