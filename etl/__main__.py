"""The command: `scan-etl`, and `python -m etl`."""

import gc
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Import the command and run it."""
    gc.disable()  # until the command is imported: `cli` says why
    try:
        import etl.cli.main  # noqa: PLC0415 - half a second, in which somebody may press Ctrl-C
    except KeyboardInterrupt:
        sys.exit(130)  # as `cli` does later on, which has more to say then
    etl.cli.main.main()


if __name__ == "__main__":
    main()
