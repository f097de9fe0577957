"""A server that answers at once: what is left to measure is the client.

It reads no more of a request than its first line, and fills the two ids into a ready body. So it takes far less
CPU than any client, and none waits for it. Prints its base URL, and ends when its stdin does.
"""

import asyncio
import json
import sys
from typing import Any

import uvloop

DEPLOYMENT_ID = 120

# The documented shape, as the scanner fills it in: meta with `on`, stats with the findings of each product.
_SCAN = {
    "id": "SCAN",
    "deployment_id": "DEPLOYMENT",
    "repository_id": 1234567,
    "enabled_products": ["sast", "secrets"],
    "started_at": "2026-11-18T23:28:12.391807Z",
    "completed_at": "2026-11-18T23:29:52.104512Z",
    "exit_code": 1,
    "has_logs": True,
    "meta": {
        "on": "pull_request",
        "branch": "refs/pull/4711/merge",
        "commit": "94c5be1312a9da03b7c4bfcc1c50b4379c834121",
        "config": "r/python",
        "repo_url": "https://github.com/example-org/payment-service",
        "ci_job_url": "https://github.com/example-org/payment-service/actions/runs/7162534112",
        "repository": "example-org/payment-service",
        "commit_title": "fix(ledger): round half to even in the monthly statement",
        "pull_request_id": "4711",
        "pull_request_title": "Round half to even in the monthly statement",
        "commit_author_name": "Sven Greppe",
        "commit_author_email": "sven.greppe@example.org",
        "commit_author_username": "SvenGreppe",
        "commit_author_image_url": "https://avatars.example.org/u/1234567?v=4",
        "pull_request_author_username": "SvenGreppe",
        "pull_request_author_image_url": "https://avatars.example.org/u/1234567?v=4",
    },
    "stats": {
        "findings": 17,
        "total_time": 99.713,
        "findings_by_product": {"code": 12, "secrets": 4, "supply-chain": 1},
    },
}
_DEPLOYMENTS = {"deployments": [{"id": DEPLOYMENT_ID, "slug": "example-org", "name": "Example Org"}]}
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Thu, 19 Nov 2026 10:00:00 GMT\r\n"
    b"Content-Length: %d\r\n\r\n"
)


def _template() -> bytes:
    body = json.dumps(_SCAN).encode().replace(b"%", b"%%")
    return body.replace(b'"SCAN"', b"%(scan)b").replace(b'"DEPLOYMENT"', b"%(deployment)b")


_BODY = _template()
_LIST = json.dumps(_DEPLOYMENTS).encode()
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def scan_body(deployment_id: bytes, scan_id: bytes) -> bytes:
    """The details of a scan: the same for all, but for the ids."""
    return _BODY % {b"scan": scan_id, b"deployment": deployment_id}


def answer(request: bytes) -> bytes:
    """The whole answer to a request, of which only the first line counts."""
    match request.split(b" ", 2)[1].split(b"/"):
        case [b"", b"api", b"v1", b"deployments", deployment, b"scan", scan]:
            body = scan_body(deployment, scan)
        case [b"", b"api", b"v1", b"deployments"]:
            body = _LIST
        case _:
            return _NOT_FOUND
    return _HEAD % len(body) + body


class Answering(asyncio.Protocol):
    """One connection. Requests may come several at a time, or in pieces; none has a body."""

    def connection_made(self, transport: Any) -> None:  # uvloop's isn't an asyncio.Transport
        """Keep the transport to write to."""
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for request in requests:
            self._transport.write(answer(request))


async def serve() -> None:
    """Answer on a free port of loopback until stdin ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())
