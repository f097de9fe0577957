"""URLs of PostgreSQL with several hosts, as libpq has them: the one that may be written to is used."""

import pytest
from given_settings import SECRET, load

from etl.config.masking import mask_url
from etl.database.engine import parse_url


@pytest.mark.parametrize(
    ("place", "hosts", "ports"),
    [
        ("one,two", "one,two", "5432,5432"),
        ("one.example:5433,two.example", "one.example,two.example", "5433,5432"),
        ("one:1,[::1]:2,10.0.0.3:3", "one,::1,10.0.0.3", "1,2,3"),
    ],
)
def test_several_hosts_are_all_tried(place: str, hosts: str, ports: str) -> None:
    """Each has its port, or the usual one; other parameters stay."""
    url = f"postgresql://etl:{SECRET}@{place}/scans?target_session_attrs=read-write"
    parsed = parse_url(load(flags={"database.url": url}).database.url)

    assert (parsed.database, parsed.username, parsed.password, parsed.host) == ("scans", "etl", SECRET, None)
    assert parsed.query == {"host": hosts, "port": ports, "target_session_attrs": "read-write"}
    assert mask_url(url) == url.replace(SECRET, "***")


def test_a_comma_in_a_password_parts_no_hosts() -> None:
    """Only the place has hosts."""
    parsed = parse_url("postgresql://etl:a,b/c@one:5433/scans")

    assert (parsed.host, parsed.port, parsed.password) == ("one", 5433, "a,b/c")
