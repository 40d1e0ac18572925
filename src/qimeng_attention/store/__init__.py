"""What is kept: bundles, whole or not at all.

Not here: reading and calling a bundle (runtime/).
"""

from __future__ import annotations

from qimeng_attention.store.bundles import bundle_name, refuse_existing, write_bundle

__all__ = ["bundle_name", "refuse_existing", "write_bundle"]
