"""The command: `scan-etl`, and `python -m etl`."""

import gc

gc.disable()  # until the command is imported: `cli` says why

from etl.cli import main  # noqa: E402 - see above

if __name__ == "__main__":
    main()
