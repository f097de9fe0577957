"""The API behind a forward proxy, and behind one that doesn't let the client through: over real HTTP and TLS."""

import asyncio
from base64 import b64encode

import pytest
from aiohttp import web
from forward_proxy import ForwardProxy
from scan_rows import document
from semgrep_client import TOKEN, asking_at
from small_api import Call, SmallApi, json_answer, raw_server

from etl.errors import ApiError, FatalError, TransientError
from etl.model import Pair

LOGIN, QUOTED_LOGIN = "etl:s/cr@t ł", "etl:s%2Fcr%40t%20%C5%82"


async def failure_through(place: str, base_url: str, *, gives_up: bool = True) -> ApiError:
    async with asking_at(base_url, environ={"ALL_PROXY": place}, gives_up=gives_up) as asking:
        with pytest.raises(ApiError) as caught:
            await asking.semgrep.ping()
    return caught.value


async def test_plain_requests_go_through_the_proxy_with_its_login() -> None:
    """Each of them, the token in it; the password is sent as it is, whatever characters it has."""
    proxy = ForwardProxy(login=LOGIN)
    async with SmallApi() as api, proxy.listening() as place:
        environ = {"HTTP_PROXY": f"http://{QUOTED_LOGIN}@{place}/"}
        async with asking_at(api.base_url, environ=environ) as asking:
            answers = [await asking.semgrep.scan(Pair(120, number)) for number in (1, 2)]

    assert answers == [document(Pair(120, number)) for number in (1, 2)]
    assert [asked.line for asked in proxy.asked] == [f"GET {api.base_url}{seen.path} HTTP/1.1" for seen in api.seen]
    assert all(f"Authorization: Bearer {TOKEN}" in asked.headers for asked in proxy.asked)


async def test_no_proxy_is_used_for_what_no_proxy_names() -> None:
    """Nor where the lower-case variable is empty."""
    proxy = ForwardProxy()
    async with SmallApi() as api, proxy.listening() as place:
        for more in ({"NO_PROXY": "other.example, 127.0.0.1"}, {"http_proxy": ""}):
            async with asking_at(api.base_url, environ={"HTTP_PROXY": place, **more}) as asking:
                await asking.semgrep.scan(Pair(120, 1))

    assert (len(api.seen), proxy.asked) == (2, [])


@pytest.mark.parametrize("gives_up", [True, False])
@pytest.mark.parametrize("base_url", ["http://127.0.0.1:1", "https://api.hidden.example"])
async def test_a_proxy_that_wants_another_login_is_told_without_it(base_url: str, gives_up: bool) -> None:
    """A run stops with exit 4, a worker tries again; no pair is to blame."""
    proxy = ForwardProxy(login="etl:other")
    async with proxy.listening() as place:
        error = await failure_through(f"http://{QUOTED_LOGIN}@{place}", base_url, gives_up=gives_up)

    assert isinstance(error, FatalError if gives_up else TransientError)
    assert getattr(error, "stop_code", 4) == 4
    assert not getattr(error, "spends_attempt", False)
    assert error.kind == "proxy"
    assert str(error).startswith(f"the proxy http://***@{place} (ALL_PROXY) refuses with HTTP 407: set ALL_PROXY to ")
    assert len(proxy.asked) == 1
    assert b64encode(LOGIN.encode()).decode() in proxy.asked[0].headers


@pytest.mark.parametrize(("status", "kind"), [(403, FatalError), (405, TransientError), (502, TransientError)])
async def test_a_proxy_that_makes_no_tunnel_is_named(status: int, kind: type[ApiError]) -> None:
    """Only what it will never let through ends a run at once."""
    async with ForwardProxy(refusal=status).listening() as place:
        error = await failure_through(place, "https://api.hidden.example")

    assert type(error) is kind
    assert str(error).startswith(f"the proxy http://{place} (ALL_PROXY) refuses with HTTP {status}: look at ")


async def test_a_proxy_that_is_away_is_named() -> None:
    """The API isn't blamed for it."""
    error = await failure_through("http://etl:s3cret@127.0.0.1:1", "https://api.hidden.example")

    assert isinstance(error, TransientError)
    assert (error.kind, error.spends_attempt) == ("connection", False)
    assert str(error).startswith("can't connect to the proxy http://***@127.0.0.1:1 (ALL_PROXY): ")
    assert "NO_PROXY" in str(error)
    assert "s3cret" not in str(error)


async def test_an_answer_of_407_by_the_api_itself_is_no_proxys() -> None:
    """Without a proxy nobody is told to set one up."""

    async def refuses(_: Call) -> web.StreamResponse:
        return json_answer({}, status=407)

    async with SmallApi(refuses) as api, asking_at(api.base_url) as asking:
        with pytest.raises(ApiError) as caught:
            await asking.semgrep.scan(Pair(120, 1))

    assert caught.value.kind == "http_status"
    assert "proxy" not in str(caught.value)


async def test_a_proxy_that_says_nothing_is_named() -> None:
    """Within the time limit of a request."""

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(silent) as place:
        environ = {"HTTPS_PROXY": place}
        async with asking_at("https://api.hidden.example", environ=environ, timeout_seconds=0.2) as asking:
            with pytest.raises(TransientError) as caught:
                await asking.semgrep.ping()

    assert caught.value.kind == "timeout"
    assert str(caught.value).endswith(f"through the proxy {place} (HTTPS_PROXY)")
