"""Which known name somebody may have meant, if any."""

from collections.abc import Iterable
from difflib import get_close_matches

LEAST_LIKENESS = 0.55
"""Of 1: below that a suggestion leads nowhere, as SCAN_ETL_API__BASE_URL for SCAN_ETL_FOO__BAR."""


def nearest(name: str, names: Iterable[str], prefix: str) -> str | None:
    """The name that is most alike, whatever the capitals and without the prefix that all of them have."""
    known = {each.removeprefix(prefix).casefold(): each for each in names}
    found = get_close_matches(name.removeprefix(prefix).casefold(), known, n=1, cutoff=LEAST_LIKENESS)
    return known[found[0]] if found else None
