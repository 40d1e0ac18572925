"""Where every tile lies, statement by statement: the origins of its axes, as the checker follows them.

The compilers and the rewritings need them for expressions over global indices.
"""

from __future__ import annotations

from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.control import check_body
from qimeng_attention.tl.types import Checked, Origin

Places = dict[str, dict[str, Origin]]  # tile -> axis -> origin


def origins_at(checked: Checked) -> list[Places]:
    """Give, for each statement in the order of `traverse.statements`, the origins of all tiles before it runs."""
    scope = Scope(trace=[])
    check_body(checked.kernel.body, scope)
    assert scope.trace is not None
    return scope.trace
