"""`python -m expertile` and the `expertile` script: misuse becomes one line, not a traceback."""

from __future__ import annotations

import sys


def main() -> None:
    """Exit 0 when done, 1 when a check failed, 2 on bad input; Ctrl-C is 130."""
    from .cli import app

    try:
        app()
    except (ValueError, OSError) as e:
        # Our own errors state the rule, the values and the way out; a traceback adds nothing.
        if "--traceback" in sys.argv:
            raise
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; everything finished so far is kept", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
