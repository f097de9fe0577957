"""What the options of the command take and refuse, and what becomes of an output that nobody reads."""

from datetime import UTC, datetime

import click
import pytest
from command import Command

from etl.cli.options import Age, Since
from etl.cli.queue import failures_list
from etl.model import INT64_MAX


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", 7 * 86_400.0),
        ("20261120", datetime(2026, 11, 20, tzinfo=UTC)),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01T02:00+02:00", datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
def test_since_is_a_duration_or_an_instant_in_utc(text: str, expected: float | datetime) -> None:
    """Eight digits that are a date are a day."""
    found = Since().convert(text, None, None)

    assert found == expected
    assert not isinstance(found, datetime) or found.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00+14:00",
        "9999-12-31T23:59-14:00",
        "9999999d",
        "9" * 400,
        "yesterday",
        "",
        "7",
        "7.5",
        "20269999",
    ],
)
def test_what_is_no_time_is_a_usage_error(text: str) -> None:
    """What is before the first year or behind the last is none either, and no number alone: seven days are meant, and
    seven seconds would find nothing."""
    with pytest.raises(click.BadParameter):
        Since().convert(text, None, None)


@pytest.mark.parametrize("kind", [Age(), Since()])
@pytest.mark.parametrize("text", ["400", "30.5"])
def test_an_age_needs_its_unit(kind: click.ParamType[object], text: str) -> None:
    """What is to be removed is never older than so many seconds by mistake."""
    with pytest.raises(click.BadParameter, match=f"'{text}' has no unit: say {text}d for days, or {text}h for hours"):
        kind.convert(text, None, None)


@pytest.mark.parametrize("number", [0, -1, INT64_MAX + 1, 99_999_999_999_999_999_999])
def test_what_cannot_be_an_id_is_a_usage_error(number: int) -> None:
    """The database is never asked for it."""
    with pytest.raises(click.BadParameter, match="is not in the range 1<=x<="):
        failures_list.make_context("list", ["--deployment", str(number)])


@pytest.mark.parametrize(
    "arguments",
    [("status", "--json"), ("status",), ("config", "show"), ("config", "show", "--json"), ("--help",)],
)
def test_an_output_that_nobody_reads_is_no_bug(cli: Command, sqlite_url: str, arguments: tuple[str, ...]) -> None:
    """The command ends as one that SIGPIPE has ended, without a word."""
    unread = "mkfifo unread && exec 3<>unread 4>unread 3>&-"  # before the command begins: some are soon done
    outcome = cli.in_shell(">&4", *arguments, environment={"SCAN_ETL_DATABASE__URL": sqlite_url}, first=unread)

    assert (outcome.exit_code, outcome.stderr) == (141, "")


@pytest.mark.parametrize("command", ["sync", "discover"])
def test_a_time_that_the_list_does_not_cover_is_a_usage_error(cli: Command, command: str) -> None:
    """As in the settings: it would be cut without a word."""
    outcome = cli(command, "--since", "60d")

    assert outcome.exit_code == 2
    assert "it must be 30d at most: the list goes back no further" in outcome.stderr
