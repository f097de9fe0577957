"""What a run has done, in the text format of Prometheus: in a file when it ends, or on a port while it goes on.

https://prometheus.io/docs/instrumenting/exposition_formats/ has the format. A file is for the textfile collector of
node_exporter, which wants it whole at any moment.
"""

import errno
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from etl.errors import ConfigError
from etl.model import RUN_COUNTS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GAUGES = frozenset({"waiting", "remaining"})
"""The counts that may fall."""


def exposition(command: str, counts: Mapping[str, float]) -> str:
    """One metric for each count: a counter for those that only rise while a run goes on, else a gauge.

    Of a run that has ended, and so has an exit code, all are gauges: what is there at the next look is another run's.
    """
    lines = []
    counters = frozenset[str]() if "exit_code" in counts else frozenset(RUN_COUNTS) - GAUGES
    for name, value in counts.items():
        is_counter = name in counters
        metric = f"scan_etl_{name}_total" if is_counter else f"scan_etl_{name}"
        lines += [f"# TYPE {metric} {'counter' if is_counter else 'gauge'}", f'{metric}{{command="{command}"}} {value}']
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Replace the file in one step, so that nobody reads half of it. OSError if that can't be done."""
    if path.exists() and not path.is_file():  # not /dev/null, which root could replace, too
        raise OSError(errno.EINVAL, "it is no regular file")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.chmod(0o644)  # whoever collects it is another user
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@asynccontextmanager
async def serving(port: int, text: Callable[[], str]) -> AsyncIterator[None]:
    """Serve `/metrics` to this machine until the block ends; port 0 serves nothing. ConfigError if it is taken."""
    if not port:
        yield
        return
    from aiohttp import web  # noqa: PLC0415 - 0.1 s that only those who ask for it need

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=text().encode(), headers={"Content-Type": CONTENT_TYPE})

    application = web.Application()
    application.router.add_get("/metrics", answer)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(
            f"observe.metrics_port: can't listen on port {port} ({error.strerror}): choose another"
        ) from error
    try:
        yield
    finally:
        await runner.cleanup()
