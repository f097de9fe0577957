"""The environment's proxies: which one is in force for an API, and that none shows its password."""

import pytest

from etl.config.proxies import proxy_for
from etl.errors import ConfigError

SEMGREP, SANDBOX = "https://semgrep.dev", "http://127.0.0.1:8765"
LOCAL = "http://127.0.0.1:3128"
SECRET = "hunter2"


@pytest.mark.parametrize(
    ("base_url", "environ", "variable"),
    [
        (SEMGREP, {"HTTPS_PROXY": "http://proxy.example:3128"}, "HTTPS_PROXY"),
        (SEMGREP, {"https_proxy": "proxy.example:3128"}, "https_proxy"),
        (SEMGREP, {"https_proxy": "proxy.example:1", "HTTPS_PROXY": "proxy.example:2"}, "https_proxy"),
        (SEMGREP, {"https_proxy": "", "HTTPS_PROXY": "proxy.example:2"}, None),
        (SEMGREP, {"HTTP_PROXY": "proxy.example:3128"}, None),
        (SEMGREP, {"ALL_PROXY": "proxy.example"}, "ALL_PROXY"),
        (SEMGREP, {"ALL_PROXY": "socks5://proxy.example", "HTTPS_PROXY": "proxy.example"}, "HTTPS_PROXY"),
        (SEMGREP, {"HTTPS_PROXY": "https://proxy.example", "NO_PROXY": "semgrep.dev"}, None),
        (SEMGREP, {"HTTPS_PROXY": "https://proxy.example", "NO_PROXY": " .dev,other"}, None),
        (SEMGREP, {"HTTPS_PROXY": "https://proxy.example", "no_proxy": "*"}, None),
        (SEMGREP, {"HTTPS_PROXY": "https://proxy.example", "NO_PROXY": "grep.dev,127.0.0.1"}, "HTTPS_PROXY"),
        (f"{SEMGREP}:8443/api", {"HTTPS_PROXY": "proxy.example", "NO_PROXY": "semgrep.dev:8443"}, None),
        (f"{SEMGREP}:8443/api", {"HTTPS_PROXY": "proxy.example", "NO_PROXY": "semgrep.dev:443"}, "HTTPS_PROXY"),
        ("https://[::1]:8443", {"HTTPS_PROXY": LOCAL, "NO_PROXY": "::1"}, None),
        (SANDBOX, {"HTTPS_PROXY": LOCAL}, None),
        (SANDBOX, {"HTTP_PROXY": LOCAL}, "HTTP_PROXY"),
        (SANDBOX, {"HTTP_PROXY": LOCAL, "NO_PROXY": "127.0.0.1"}, None),
        (SANDBOX, {"HTTP_PROXY": "http://proxy.example:3128", "ALL_PROXY": "proxy.example"}, None),
        ("https://localhost", {"HTTPS_PROXY": "http://proxy.example:3128"}, None),
    ],
)
def test_the_usual_rules_decide(base_url: str, environ: dict[str, str], variable: str | None) -> None:
    """Lower case wins, the scheme's own before the one for all; what is on this machine is asked through no proxy
    elsewhere, which would see the token in the clear."""
    proxy = proxy_for(base_url, environ)

    assert (proxy and proxy.variable) == variable


@pytest.mark.parametrize(
    ("value", "address", "secret"),
    [
        (f"http://etl:{SECRET}@proxy.example:3128", "http://***@proxy.example:3128", SECRET),
        (f"etl:{SECRET}%2Fx@[::1]:3128/", "http://***@[::1]:3128", f"{SECRET}/x"),
        (f"https://{SECRET}@proxy.example", "https://***@proxy.example", SECRET),
    ],
)
def test_who_logs_in_is_not_shown(value: str, address: str, secret: str) -> None:
    """Neither by repr() nor by str(); the secret is known for what it is, to be masked elsewhere."""
    proxy = proxy_for(SEMGREP, {"HTTPS_PROXY": value})

    assert proxy is not None
    assert str(proxy) == f"the proxy {address} (HTTPS_PROXY)"
    assert proxy.secrets == (secret,)
    assert SECRET not in repr(proxy)


@pytest.mark.parametrize("scheme", ["socks4", "socks5", "socks5h"])
def test_a_socks_proxy_is_refused(scheme: str) -> None:
    """With the variable's name, and what can be done."""
    with pytest.raises(ConfigError, match=r"^all_proxy: a SOCKS proxy can't be used: .*HTTPS_PROXY") as caught:
        proxy_for(SEMGREP, {"all_proxy": f"{scheme}://etl:{SECRET}@127.0.0.1:1080"})

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        f"ftp://etl:{SECRET}@proxy.example",
        f"http://etl:{SECRET}/x@proxy.example:3128",
        f"http://etl:{SECRET}#x@proxy.example:3128",
        f"http://etl:{SECRET}@proxy.example:port",
        f"http://etl:{SECRET}@proxy.example:99999",
        f"http://etl:{SECRET}@",
        f"http://etl:{SECRET}@proxy.example/?x",
        f"http://etl:{SECRET} x@proxy.example",
        f"http://etl:{SECRET}\n@proxy.example",
        "http://",
        "://",
    ],
)
def test_what_is_no_address_of_a_proxy_is_refused(value: str) -> None:
    """The sentence shows one that is, and no password."""
    with pytest.raises(
        ConfigError, match=r"^HTTPS_PROXY isn't the address of a proxy: it must be like http://"
    ) as caught:
        proxy_for(SEMGREP, {"HTTPS_PROXY": value})

    assert SECRET not in str(caught.value)
