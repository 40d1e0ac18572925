"""What is shown of a description, of a bundle and of a model's run: as text in the terminal, as one HTML file.

Not here: making either (workflow/), the summary that needs no generator (runtime/summary.py).
"""

from __future__ import annotations

from qimeng_attention.report.html_page import run_to_html, to_html
from qimeng_attention.report.page import Page, page_of
from qimeng_attention.report.run_page import RunPage, run_page
from qimeng_attention.report.run_terminal import show_run
from qimeng_attention.report.terminal_page import show_observed, show_page, show_understood
from qimeng_attention.report.understood import Understood, understand

__all__ = [
    "Page",
    "RunPage",
    "Understood",
    "page_of",
    "run_page",
    "run_to_html",
    "show_observed",
    "show_page",
    "show_run",
    "show_understood",
    "to_html",
    "understand",
]
