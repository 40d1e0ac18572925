"""The server: which tools and resources a client sees, and what it is told of calls that make no sense.

Every answer is one JSON object, as structured content and as text; `ok` in it is false where the call is an error.

Not here: the tools (tools.py).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import anyio.to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resources import TextResource
from mcp_types import CallToolResult, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import ValidationError

from qimeng_attention import __version__
from qimeng_attention.errors import SpecError
from qimeng_attention.integrations.mcp import reference, skill
from qimeng_attention.integrations.mcp.answers import failure
from qimeng_attention.integrations.mcp.hidden import refuse_hidden, visible
from qimeng_attention.integrations.mcp.jobs import Jobs
from qimeng_attention.integrations.mcp.root import Root
from qimeng_attention.integrations.mcp.tools import Answer, Tools

NAME = "qimeng"
WRITING = ("start_generate", "start_bench", "cancel")  # the others change nothing that lasts
_INSTRUCTIONS = (
    "Author attention kernels in TL, a small language that is checked, interpreted, judged and compiled. "
    "Read the resource qimeng://skill first: the order of steps and how to read what each gate says. "
    "Tools that begin with start_ give a job: poll it."
)


class Server(MCPServer[None]):
    """An MCP server whose errors have the shape of its answers."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[None, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; arguments that make no sense are an answer, too."""
        try:
            taken = {tool.name: tool.input_schema.get("properties", {}) for tool in await self.list_tools()}
            if name not in taken:
                raise SpecError(f"there is no tool {name!r}", hint=_nearest(name, list(taken)), field="tool")
            for given, value in arguments.items():
                if given not in taken[name]:
                    message = f"{name} takes no argument {given!r}"
                    raise SpecError(message, hint=_nearest(given, list(taken[name])), field=visible(given))
                refuse_hidden(value, given)
            return await super().call_tool(name, arguments, context)
        except SpecError as error:
            return answered(failure(error))
        except ToolError as error:
            return answered(failure(_refused(name, error)))


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"take one of {', '.join(known) or 'none'}"


def _refused(name: str, error: ToolError) -> BaseException:
    """Say which argument does not fit, in our words."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return cause or error
    first = cause.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return SpecError(f"{name}: {field}: {first['msg']}", hint="see the tool's input schema", field=field)


def answered(fields: Answer) -> CallToolResult:
    """Give an answer as clients take it."""
    text = json.dumps(fields, ensure_ascii=False)
    return CallToolResult(
        content=[TextContent(type="text", text=text)], structured_content=fields, is_error=not fields["ok"]
    )


def _guarded(tool: Callable[..., Awaitable[Answer]]) -> Callable[..., Awaitable[CallToolResult]]:
    """Turn whatever a tool raises into an answer."""

    @wraps(tool)
    async def call(*args: Any, **kwargs: Any) -> CallToolResult:
        try:
            return answered(await tool(*args, **kwargs))
        except Exception as error:  # whatever it is, it must not reach a client as a traceback
            return answered(failure(error))

    return call


def build_server(root: Root) -> Server:
    """Make a server that works in a folder; its jobs end with it."""
    jobs = Jobs(root.folder)

    @asynccontextmanager
    async def lifespan(_: MCPServer[None]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(jobs.close)

    server = Server(
        NAME,
        title="QiMeng-Attention",
        version=__version__,
        instructions=_INSTRUCTIONS,
        log_level="ERROR",
        lifespan=lifespan,
    )
    tools = Tools(root, jobs)
    for name in (n for n in vars(Tools) if not n.startswith("_")):
        hints = ToolAnnotations(read_only_hint=name not in WRITING, open_world_hint=False)
        server.add_tool(_guarded(getattr(tools, name)), name=name, annotations=hints, structured_output=False)
    for name, title, text, kind in (
        ("skill", "How to author a kernel with these tools", skill(), "text/markdown"),
        ("language", "The language TL: rules, statements, functions, schedule", reference.page(), "text/markdown"),
        ("grammar", "The grammar of TL, with an example behind each rule", reference.grammar(), "text/plain"),
    ):
        uri = f"qimeng://{name}"
        server.add_resource(TextResource(uri=uri, name=name, title=title, text=text, mime_type=kind))
    return server
