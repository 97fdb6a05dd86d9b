"""The `fastbadge` command, beside the package because importing that takes a second, for torch."""

import os
import signal
import sys


def main() -> int:
    """Run `fastbadge.cli.main`, and answer Ctrl-C while it is being loaded in the same way."""
    handler = signal.getsignal(signal.SIGINT)
    heard = handler is signal.default_int_handler  # not in the background of a shell script
    if heard:
        # No KeyboardInterrupt: torch aborts on one, or loses it and leaves numpy imported by half.
        signal.signal(signal.SIGINT, _stop)
    from fastbadge.cli import main as run

    try:
        if heard:
            signal.signal(signal.SIGINT, handler)
        return run()
    except KeyboardInterrupt:  # one more, just as the first was being answered
        return _stop()
    finally:
        if heard:  # all is done; Python takes half a second to end, and would show a traceback
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(*_: object) -> int:
    try:
        print("fastbadge: stopped", file=sys.stderr)
    finally:
        os._exit(130)
