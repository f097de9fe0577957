"""How much memory some work takes at most."""

import sys
import tracemalloc
from collections.abc import Callable


def peak_bytes(work: Callable[[], object]) -> int:
    """What `work` allocates at its peak. Its lines don't count for the coverage, which would take ten times as long."""
    tracer = sys.gettrace()
    sys.settrace(None)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        sys.settrace(tracer)
