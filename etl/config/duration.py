"""Durations as people write them."""

import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)


def seconds_of(text: str) -> float:
    """`90`, `90s`, `10m`, `2h` or `7d`, as seconds. ValueError with an example of what is right."""
    found = _DURATION.fullmatch(text.strip())
    if not found or float(found[1]) == 0:
        raise ValueError("it must be a duration such as 90s, 10m, 2h or 7d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
