"""From a request to a bundle: every stage in order."""

from qimeng_attention.workflow.generate import Outcome, generate, run
from qimeng_attention.workflow.stages import STAGES, Results, find_target

__all__ = ["STAGES", "Outcome", "Results", "find_target", "generate", "run"]
