"""A run as CSV and JSON, for other programs: one row a round."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from fastbadge.lab.protocol import deviations
from fastbadge.lab.store import RoundRow, Run

COLUMNS = (
    "strategy",
    "trial",
    "round",
    "labels",
    "accuracy",
    "loss",
    "train_seconds",
    "query_seconds",
    "eval_seconds",
)


def as_csv(run: Run) -> str:
    """The rows of a run under a header of `COLUMNS`; accuracy is 0..1, numbers are exact."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_values(row).values() for row in run.rows)
    return text.getvalue()


def as_json(run: Run) -> str:
    """An object with `configuration`, `deviations` from what was published, `environment`, `rows`.

    The rows are those of the CSV.
    """
    content = {
        "configuration": asdict(run.config),
        "deviations": deviations(run.config),
        "environment": run.environment,
        "rows": [_values(row) for row in run.rows],
    }
    return json.dumps(content, indent=1) + "\n"


def _values(row: RoundRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in COLUMNS}
