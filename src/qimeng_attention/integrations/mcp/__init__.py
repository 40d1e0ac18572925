"""The stages as tools of the Model Context Protocol, so that a coding agent can author kernels: `qimeng mcp`.

    server.py     the server: tools, resources, what is said of arguments that make no sense
    tools.py      the tools and what they take
    jobs.py       jobs in processes beside the server: started, polled, cancelled, told of when they die
    worker.py     such a process
    work.py       what is done there, stage by stage
    answers.py    results and errors as values with stable keys
    hidden.py     characters that are not shown: refused in what comes in, made visible in what goes out
    root.py       the one folder that tools read and write in
    reference.py  the language reference, from the tables of the language

Only server.py and tools.py import the SDK.
"""

from __future__ import annotations

from importlib import resources


def skill() -> str:
    """Give SKILL.md: how a coding agent authors a kernel with these tools."""
    return resources.files("qimeng_attention.integrations.mcp").joinpath("SKILL.md").read_text("utf-8")
