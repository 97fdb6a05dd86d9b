"""One self-contained HTML page about one or several runs, from their records alone."""

from fastbadge.lab.report.page import render_report

__all__ = ["render_report"]
