"""What a run has done and how it stands, in the text format of Prometheus: in a file when it ends, or on a port.

https://prometheus.io/docs/instrumenting/exposition_formats/ has the format. A file is for the textfile collector of
node_exporter, which wants it whole at any moment. The library for it takes longer to import than a run to start.
"""

import errno
import math
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from etl.errors import ConfigError
from etl.model import RUN_COUNTS
from etl.telemetry.histogram import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GAUGES = frozenset({"waiting", "remaining"})
"""The counts that may fall."""


class Metric(NamedTuple):
    """What a metric is: `counter`, `gauge` or `histogram`, and what it measures."""

    kind: str
    meaning: str


class Sample(NamedTuple):
    """A value of a metric, whose name has no prefix here, with labels."""

    name: str
    value: float | Histogram
    labels: Mapping[str, str] = {}


OF_ENDED_RUNS = {
    **{name: Metric("gauge", f"Of the latest run: {meaning}.") for name, meaning in RUN_COUNTS.items()},
    "duration_seconds": Metric("gauge", "How long the latest run took."),
    "exit_code": Metric("gauge", "The exit code of the latest run."),
    "finished_timestamp_seconds": Metric("gauge", "When the latest run ended."),
}
OF_WORKERS = {
    **{
        f"{name}_total": Metric("counter", f"Since the start: {meaning}.")
        for name, meaning in RUN_COUNTS.items()
        if name not in GAUGES
    },
    "build_info": Metric("gauge", "Always 1; its label is the version."),
    "started_timestamp_seconds": Metric("gauge", "When the worker started."),
    "ready": Metric("gauge", "1 while the worker can work, else 0: /readyz says why."),
    "halted_deployments": Metric("gauge", "Halted deployments: no request is sent, because of the token or the API."),
    "pace_requests_per_second": Metric(
        "gauge", "Requests a second that the worker may send with a deployment's token."
    ),
    "gate_open": Metric("gauge", "0 while the API refuses the token or is unavailable, else 1."),
}
OF_BOTH = {
    "request_duration_seconds": Metric("histogram", "How long the API took for a request, with those that failed."),
    "queue_pairs": Metric("gauge", "Pairs in the queue, by state."),
    "queue_oldest_due_timestamp_seconds": Metric("gauge", "Since when the oldest pair is due; absent if none is."),
    "dead_letters": Metric("gauge", "Dead letters, by the kind of their error."),
    "listing_gaps": Metric("gauge", "Discovery gaps: periods whose scans are no longer available from the API."),
    "last_success_timestamp_seconds": Metric("gauge", "When a run of the command last ended with exit code 0 or 1."),
}
METRICS = OF_ENDED_RUNS | OF_WORKERS | OF_BOTH


def exposition(samples: Iterable[Sample]) -> str:
    """The samples, by metric, each with what it means and its type."""
    lines: dict[str, list[str]] = {}
    for sample in samples:
        lines.setdefault(sample.name, []).extend(_lines(sample))
    return "".join(f"{_head(name)}{''.join(values)}" for name, values in lines.items())


def _head(name: str) -> str:
    kind, meaning = METRICS[name]
    return f"# HELP scan_etl_{name} {meaning}\n# TYPE scan_etl_{name} {kind}\n"


def _lines(sample: Sample) -> list[str]:
    if not isinstance(sample.value, Histogram):
        return [_line(sample.name, sample.labels, sample.value)]
    times = sample.value
    buckets = [
        _line(f"{sample.name}_bucket", {**sample.labels, "le": "+Inf" if bound == math.inf else f"{bound:g}"}, count)
        for bound, count in times.cumulative()
    ]
    total = [_line(f"{sample.name}_{name}", sample.labels, getattr(times, name)) for name in ("sum", "count")]
    return buckets + total


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"scan_etl_{name}{f'{{{shown}}}' if shown else ''} {value}\n"


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
async def serving(port: int, text: Callable[[], str], waits_for: Callable[[], str | None]) -> AsyncIterator[None]:
    """Serve `/metrics`, `/healthz` and `/readyz` to this machine until the block ends; port 0 serves nothing.

    It is ready while it `waits_for` nothing. ConfigError if the port is taken.
    """
    if not port:
        yield
        return
    from aiohttp import web  # noqa: PLC0415 - 0.1 s that only those who ask for it need

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=text().encode(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        reason = waits_for()
        return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)

    application = web.Application()
    for handler in (metrics, healthz, readyz):
        application.router.add_get(f"/{handler.__name__}", handler)
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
