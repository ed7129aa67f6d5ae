"""`python -m expertile` and the `expertile` script: misuse becomes one line, not a traceback."""

from __future__ import annotations

import sys

# Optional packages and the extra of pyproject.toml that brings them.
_EXTRA_OF = {"typer": "tune", "rich": "tune", "optuna": "tune", "platformdirs": "tune",
             "sqlalchemy": "tune", "tvm": "cpu", "safetensors": "model", "tokenizers": "model",
             "jinja2": "model"}


def main() -> None:
    """Exit 0 when done, 1 when a check failed, 2 on bad input; Ctrl-C is 130."""
    try:
        from .cli import app

        app()
    except ModuleNotFoundError as e:
        extra = _EXTRA_OF.get((e.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"error: this command needs {e.name}; run: pip install 'expertile[{extra}]'",
              file=sys.stderr)
        sys.exit(2)
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
