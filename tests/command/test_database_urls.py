"""What a driver can't do with a database URL is a sentence and exit code 2, without a piece of the password."""

import pytest
from command import Command
from sha2_login import sha2_login

PASSWORD = "hunter2hunter2"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            f"postgresql://etl:{PASSWORD}@127.0.0.1:1/scans?pgbouncer=true",
            'database.url has a wrong parameter: invalid connection option "pgbouncer"',
        ),
        (
            f"postgresql://etl:{PASSWORD}@127.0.0.1:1/scans?sslmode=true",
            'database.url has a wrong parameter: connection is bad: invalid sslmode value: "true"',
        ),
        (
            f"mysql://etl:{PASSWORD}@127.0.0.1:1/scans?pool=5",
            "database.url has a parameter that the driver doesn't know: ",
        ),
        (
            f"mysql://etl:{PASSWORD}@127.0.0.1:1/scans?compress=1",
            "database.url has a parameter that the driver doesn't know: ",
        ),
        (f"mysql://etl:{PASSWORD}@127.0.0.1:1/scans?connect_timeout=5s", "database.url has a wrong parameter: "),
        (f"mysql://etl:{PASSWORD}@127.0.0.1:1/scans?port=x", "database.url has a wrong parameter: "),
        (
            f"mysql://etl:{PASSWORD}@127.0.0.1:1/scans?ssl_ca=/nowhere/ca.pem",
            "database.url names a file that can't be read (No such file or directory)",
        ),
        (
            f"postgresql://etl:{PASSWORD[:7]}@{PASSWORD[7:]}/more@127.0.0.1/scans",
            "an @ in a user, a password or a parameter is written %40",
        ),
    ],
)
def test_a_wrong_url_is_a_wrong_setting(cli: Command, url: str, said: str) -> None:
    """Nothing has started."""
    outcome = cli("status", environment={"SCAN_ETL_DATABASE__URL": url})

    assert outcome.exit_code == 2, outcome
    assert said in outcome.stderr
    assert PASSWORD[:7] not in outcome.stderr


def test_a_login_that_needs_a_package_says_which(cli: Command) -> None:
    """MySQL 8's without TLS: the tests' environment hasn't what encrypts the password."""
    with sha2_login() as port:
        outcome = cli(
            "status", environment={"SCAN_ETL_DATABASE__URL": f"mysql://etl:{PASSWORD}@127.0.0.1:{port}/scans"}
        )

    assert outcome.exit_code == 2, outcome
    assert "`pip install cryptography`, or ask for TLS by ssl_ca=FILE" in outcome.stderr
    assert PASSWORD not in outcome.stderr
