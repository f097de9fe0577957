"""The command: `scan-etl`, and `python -m etl`."""

import gc

# What is imported stays for good. To look it through for garbage, while it is imported, as it is used and once more at
# the end, costs 0.1 s a command.
gc.disable()

from etl.cli import main  # noqa: E402 - see above

gc.freeze()
gc.set_threshold(20_000, 20, 20)
gc.enable()

if __name__ == "__main__":
    main()
