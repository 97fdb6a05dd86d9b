"""The `fastbadge` command, beside the package because importing that takes a second, for torch."""

import sys


def main() -> int:
    """Run `fastbadge.cli.main`, and end in one line where Ctrl-C comes while it is being loaded."""
    try:
        from fastbadge.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("fastbadge: stopped", file=sys.stderr)
        return 130
