"""What is kept: bundles, whole or not at all.

Not here: reading and calling a bundle (runtime/).
"""

from __future__ import annotations

from qimeng_attention.store.bundles import bundle_name, write_bundle

__all__ = ["bundle_name", "write_bundle"]
