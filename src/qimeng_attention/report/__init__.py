"""What is shown of a description and of a bundle: as text in the terminal, as one HTML file.

Not here: making either (workflow/), the summary that needs no generator (runtime/summary.py).
"""

from __future__ import annotations

from qimeng_attention.report.html_page import to_html
from qimeng_attention.report.page import Page, page_of
from qimeng_attention.report.terminal_page import show_page, show_understood
from qimeng_attention.report.understood import Understood, understand

__all__ = ["Page", "Understood", "page_of", "show_page", "show_understood", "to_html", "understand"]
