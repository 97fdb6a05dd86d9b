"""One self-contained HTML page about one or several runs, from their records alone."""

from fastbadge.lab.report.page import ranking, render_report

__all__ = ["ranking", "render_report"]
