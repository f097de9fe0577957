"""The proxy that the environment names: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import SplitResult, quote, unquote, unquote_to_bytes, urlsplit

from etl.errors import ConfigError

_SUFFIX = "_proxy"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable that names it. Neither repr() nor str() shows who logs in, which may be a secret."""

    url: str = field(repr=False)
    """With user and password in it, as aiohttp understands them."""
    variable: str
    address: str
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"the proxy {self.address} ({self.variable})"


def proxy_for(base_url: str, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy through which this API is asked; None if there is none, or it isn't for this host.

    An API on this machine is asked through none elsewhere: that couldn't reach it, and would see the token.
    ConfigError, without a password, for one that can't be used.
    """
    api, variables = urlsplit(base_url), _variables(environ)
    variable = variables.get(api.scheme) or variables.get("all")
    if variable is None or _is_exempt(api, environ.get(variables.get("no", ""), "")):
        return None
    text = environ[variable]
    parts = _parsed(variable, text if "://" in text else f"http://{text}")
    is_elsewhere = is_loopback(api.hostname or "") and not is_loopback(parts.hostname or "")
    return None if is_elsewhere else _proxy(variable, parts)


def is_loopback(host: str) -> bool:
    """Whether it is this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables in force, by what is before `_proxy`. One in lower case wins, also if it is empty, as for curl and
    urllib."""
    names = sorted(name for name in environ if name.lower().endswith(_SUFFIX))  # upper case comes first
    found = {name.lower().removesuffix(_SUFFIX): name for name in names}
    return {scheme: name for scheme, name in found.items() if environ[name]}


def _is_exempt(api: SplitResult, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host, with or without its port, or a domain above it."""
    names = [name.strip().lower().lstrip(".") for name in no_proxy.split(",")]
    places = (api.hostname or "", api.netloc.lower())
    return "*" in names or any(f".{place}".endswith(f".{name}") for name in names if name for place in places)


def _parsed(variable: str, url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole, parts = False, urlsplit("")
    if parts.scheme.startswith("socks"):
        raise ConfigError(
            f"{variable}: a SOCKS proxy can't be used: name one for HTTP in HTTPS_PROXY, or the host of api.base_url in"
            " NO_PROXY"
        )
    has_more = (parts.path.strip("/"), parts.query, parts.fragment) != ("", "", "")
    if not is_whole or has_more or parts.scheme not in ("http", "https") or not url.isprintable() or " " in url:
        raise ConfigError(
            f"{variable} isn't the address of a proxy: it must be like http://user:password@proxy.example:3128, with"
            " special characters in the password as %XX"
        )
    return parts


def _proxy(variable: str, parts: SplitResult) -> Proxy:
    login, at, place = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    return Proxy(
        url=f"{parts.scheme}://{_requoted(user)}:{_requoted(password)}@{place}" if at else f"{parts.scheme}://{place}",
        variable=variable,
        address=f"{parts.scheme}://{'***@' if at else ''}{place}",
        secrets=tuple(filter(None, [unquote(password) or unquote(user)])),
    )


def _requoted(text: str) -> str:
    """aiohttp sends Latin-1, and proxies read UTF-8: each of its bytes must be a character."""
    return quote(unquote_to_bytes(text).decode("latin-1"), safe="")
