"""`run_command(main)`: how every command line ends."""

import sys
from collections.abc import Callable


def run_command(main: Callable[[], int | None], *refusals: type[Exception]) -> None:
    """Run a command; exit with one sentence for ValueError, OSError and `refusals`, with 130 for Ctrl-C."""
    try:
        code = main()
    except (ValueError, OSError, *refusals) as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nstopped", file=sys.stderr)
        sys.exit(130)
    if code:
        sys.exit(code)
