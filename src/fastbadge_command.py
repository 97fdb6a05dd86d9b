"""The `fastbadge` command, beside the package because importing that takes a second, for torch."""

import os
import signal
import sys


def main() -> int:
    """Run `fastbadge.cli.main`; Ctrl-C before or after it is one line and status 130 as well."""
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
        if heard:  # Python takes half a second to end, and would answer with a traceback
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def _stop(*_: object) -> int:
    try:
        print("fastbadge: stopped", file=sys.stderr)
    finally:
        os._exit(130)
