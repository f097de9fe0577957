"""Runs a command and prints, as the last line of stdout, what it used: one JSON object.

    python -I -S child_usage.py PROGRAM ARGUMENT...

A process of its own, and a tiny one: Linux counts the memory of the process that starts a child as the child's
own peak, so whoever measures small programs has to be smaller.
"""

import json
import os
import sys
import time

started = time.monotonic()
process_id = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(process_id, 0)
used = {
    "exit_code": os.waitstatus_to_exitcode(status),
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    "elapsed_seconds": time.monotonic() - started,
}
print(json.dumps(used))
