"""`python -m etl` is the same as `scan-etl`."""

from etl.cli import main

main()
