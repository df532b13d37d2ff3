"""`run_command(main)`: what every command line does with an error."""

import sys
from collections.abc import Callable


def run_command(main: Callable[[], int | None], *refusals: type[Exception]) -> None:
    """Run a command and exit: one sentence for a refusal (ValueError, OSError and `refusals`), 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except (ValueError, OSError, *refusals) as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nstopped", file=sys.stderr)
        sys.exit(130)
