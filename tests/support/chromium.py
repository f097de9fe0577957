"""A real Chromium without a window, spoken to by its DevTools protocol: it shows a page, and says what that did."""

import asyncio
import base64
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
from patience import PATIENCE_SECONDS

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
    "--remote-debugging-port=0",
)
PHONE_PIXELS, LAPTOP_PIXELS, HEIGHT_PIXELS = 390, 1280, 844
CONSOLE = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")


def chromium_problem() -> str | None:
    """What is missing here for tests in a browser, told to the person who runs the tests."""
    if any(map(shutil.which, PROGRAMS)):
        return None
    return "Chromium: none on this machine, so its tests are left out. Install your system's chromium package."


class Tab:
    """A page that is shown. `told` has the events of the browser since then: each with its `method` and `params`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self.told: list[Mapping[str, Any]] = []

    async def call(self, method: str, **params: Any) -> Any:
        """The result of a command of the protocol. RuntimeError with what the browser has against it."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while (message := await self._next()).get("id") != number:
            self.told.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._socket.receive_json(timeout=PATIENCE_SECONDS)
        return message

    async def show(self, path: Path, *, width: int, dark: bool = False) -> None:
        """Load a file into a window of this width, until all of it is there."""
        self.told.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        window = {"width": width, "height": HEIGHT_PIXELS, "deviceScaleFactor": 1, "mobile": width < LAPTOP_PIXELS}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Emulation.setDeviceMetricsOverride", **window)
        await self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.told):
            self.told.append(await self._next())

    async def ask(self, expression: str) -> Any:
        """The value of an expression in the page. RuntimeError if it throws."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    async def pdf(self) -> bytes:
        """The page on paper."""
        return base64.b64decode((await self.call("Page.printToPDF", preferCSSPageSize=True))["data"])

    def requested(self) -> Sequence[str]:
        """The addresses that were asked for: that of the page itself, and those that it names."""
        sent = (each["params"]["request"]["url"] for each in self.told if each["method"] == "Network.requestWillBeSent")
        return [url for url in sent if not url.startswith("data:")]

    def complaints(self) -> Sequence[Mapping[str, Any]]:
        """What stands in the console: errors, warnings, and what the policy of the page has blocked."""
        return [event for event in self.told if event["method"] in CONSOLE]


@asynccontextmanager
async def open_tab(folder: Path) -> AsyncIterator[Tab]:
    """A tab of a browser of our own, which keeps all that it writes in the folder."""
    program = next(filter(None, map(shutil.which, PROGRAMS)))
    process = await asyncio.create_subprocess_exec(
        *(program, *OPTIONS, f"--user-data-dir={folder}", "about:blank"),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"},
    )
    assert process.stderr is not None
    try:
        port = await asyncio.wait_for(_port(process.stderr), PATIENCE_SECONDS)
        rest = asyncio.create_task(process.stderr.read())  # it would wait for somebody to read it
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session, _socket(session) as socket:
            tab = Tab(socket)
            for domain in ("Page", "Network", "Log", "Runtime"):
                await tab.call(f"{domain}.enable")
            yield tab
            await tab.call("Browser.close")
        await asyncio.wait_for(rest, PATIENCE_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _port(stderr: asyncio.StreamReader) -> int:
    """The browser says where it listens."""
    said = b""
    while line := await stderr.readline():
        said += line
        if found := re.search(rb"DevTools listening on ws://127\.0\.0\.1:(\d+)/", line):
            return int(found[1])
    raise RuntimeError(f"Chromium has ended: {said.decode(errors='replace')}")


@asynccontextmanager
async def _socket(session: aiohttp.ClientSession) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with session.get("/json/list") as answer:
        page = next(each for each in await answer.json(content_type=None) if each["type"] == "page")
    async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
        yield socket
