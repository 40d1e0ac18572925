"""Commands about the machine: the GPUs that can be named, what is installed, the cache.

Not here: the stages (cli.py).
"""

from __future__ import annotations

from typing import Annotated

import typer

from qimeng_attention import terminal
from qimeng_attention.cli_guard import Json, guarded


@guarded
def targets(as_json: Json = False) -> None:
    """List the GPUs that can be named."""
    from qimeng_attention import targets as known

    found = [known.get(n) for n in known.names()]
    if as_json:
        terminal.print_json(
            [
                {
                    "name": t.name,
                    "arch": t.arch,
                    "sms": t.sms,
                    "shared_per_block": t.shared_per_block_bytes,
                    "dtypes": t.dtypes,
                    "capabilities": sorted(t.capabilities),
                }
                for t in found
            ]
        )
        return
    rows = [
        [
            t.name,
            t.arch,
            t.sms,
            f"{t.shared_per_block_bytes // 1024} KB",
            ", ".join(t.dtypes),
            ", ".join(sorted(t.capabilities)),
        ]
        for t in found
    ]
    terminal.table("", ["name", "arch", "SMs", "shared", "types", "capabilities"], rows)


@guarded
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, and what to install for the rest."""
    from qimeng_attention.workflow.doctor import examine

    found = examine()
    if as_json:
        terminal.print_json([f.__dict__ for f in found])
        return
    terminal.table("", ["what", "found", "gives", "to get it"], [[f.what, f.found, f.gives, f.remedy] for f in found])


@guarded
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove every entry.")] = False, as_json: Json = False
) -> None:
    """Show or clear the cache of compiled kernels."""
    from qimeng_attention.build import Cache

    opened = Cache.open()
    if clear:
        opened.clear()
    stats = opened.stats()
    found = {name: getattr(stats, name) for name in stats.__dataclass_fields__}
    if as_json:
        terminal.print_json(found)
    else:
        terminal.facts(found)
    if opened.note:
        terminal.note(opened.note)
