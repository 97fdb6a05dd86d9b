"""`python -m fastbadge` is the `fastbadge` command."""

import sys

from fastbadge_command import main

if __name__ == "__main__":
    sys.exit(main())
