"""What an HTTP answer means, as pure functions: statuses, headers and bodies in, errors and numbers out."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import MESSAGE_CHARACTERS, FatalError, ItemError, TransientError
from etl.semgrep.responses import (
    QUOTED_CHARACTERS,
    RefusedPathError,
    deployment_ids,
    document,
    meaning,
    one_line,
    quota,
    quoted,
    refusal_of_scan,
    refusal_of_token,
    server_time,
    token_missing,
    token_of_another,
)

NOW = datetime(2026, 11, 24, 10, 30, tzinfo=UTC)
STATUSES = st.integers(100, 599).filter(lambda status: status != 200)


def transient(status: int, **headers: str) -> TransientError:
    error = meaning(status, "said", {name.replace("_", "-"): value for name, value in headers.items()}, NOW)
    assert isinstance(error, TransientError)
    return error


@given(st.text() | st.text().map(lambda text: text * 200))
def test_an_error_is_one_line_that_everything_takes(said: str) -> None:
    """Whoever said it: it goes into logs, onto terminals and into rows."""
    text = str(meaning(500, said, {"Location": said}, NOW))

    assert text.isprintable()
    assert len(text) <= MESSAGE_CHARACTERS
    assert text.encode() is not None


def test_a_retired_endpoint_is_fatal() -> None:
    """So the API says with a code of its own, and it is no scan's fault."""
    error = meaning(410, "HTTP said so", {}, NOW, b'{"message": "it moved", "code": "DEPLOYMENT_MIGRATED"}')

    assert isinstance(error, FatalError)
    assert (error.stop_code, error.http_status) == (4, 410)
    assert "HTTP said so" in str(error)


@pytest.mark.parametrize(
    ("status", "kind", "of_token", "stop_code"),
    [
        (401, "refused", "token_refused", 3),
        (403, "refused", "token_refused", 3),
        (404, "not_found", "token_without_scope", 3),
        (410, "gone", "endpoint_retired", 4),
    ],
)
def test_a_refused_path_is_not_yet_an_error_of_the_scan(status: int, kind: str, of_token: str, stop_code: int) -> None:
    """It has a type of its own, for it says nothing of the scan until the token has proved good."""
    error = meaning(status, "HTTP said so", {}, NOW, b'{"code": "ANOTHER"}')

    assert isinstance(error, RefusedPathError)
    at_scan, at_token = refusal_of_scan("scan", error), refusal_of_token(error)
    assert (at_scan.kind, at_scan.http_status) == (kind, status)
    assert (at_token.kind, at_token.http_status, at_token.stop_code) == (of_token, status, stop_code)
    assert "HTTP said so" in str(at_scan)


def test_429_spends_no_attempt() -> None:
    """A refused pair isn't to blame."""
    error = transient(429)

    assert (error.kind, error.http_status, error.spends_attempt) == ("rate_limited", 429, False)


@pytest.mark.parametrize("status", [408, 413, 425, 500, 501, 502, 503, 504, 520, 599, 201, 202, 204, 206])
def test_what_may_pass_is_tried_again(status: int) -> None:
    """Server errors, three statuses of the client and an odd success may be another thing the next time."""
    error = transient(status)

    assert (error.kind, error.http_status, error.spends_attempt) == ("http_status", status, True)


@pytest.mark.parametrize("status", [400, 402, 405, 406, 409, 414, 422, 451])
def test_other_client_errors_are_the_pairs_own(status: int) -> None:
    """Asking the same again gives the same: a dead letter."""
    error = meaning(status, "said", {}, NOW)

    assert isinstance(error, ItemError)
    assert (error.kind, error.http_status) == ("http_status", status)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (format_datetime(NOW + timedelta(seconds=9), usegmt=True), 9.0),
        ("0", None),
        ("-3", None),
        ("soon", None),
        ("1e999", None),
    ],
)
def test_retry_after_reaches_the_error(status: int, header: str, seconds: float | None) -> None:
    """What the server asks for, in seconds or as a date, is kept; nonsense is as good as nothing."""
    error = transient(status, Retry_After=header)

    assert error.retry_after_seconds == seconds


@pytest.mark.parametrize("location", ["https://u:pw@sso.example.com/login?next=%2F", "/login", "", "http://[half"])
def test_a_redirect_is_named_and_not_followed(location: str) -> None:
    """The message says where it would have led, without user and query, and which setting to look at."""
    error = transient(302, Location=location)

    assert ("sso.example.com" in str(error)) == ("sso" in location)
    assert not any(secret in str(error) for secret in ("next=", "pw"))
    assert "look at api.base_url" in str(error)


@given(STATUSES, st.dictionaries(st.sampled_from(["Retry-After", "Location"]), st.text(max_size=20)))
def test_every_status_has_a_meaning(status: int, headers: dict[str, str]) -> None:
    """No status and no header makes it stumble, and only 429 is free of charge."""
    error = meaning(status, "said", headers, NOW)

    assert isinstance(error, TransientError | ItemError | FatalError | RefusedPathError)
    if isinstance(error, TransientError):
        assert error.spends_attempt == (status != 429)
        assert error.retry_after_seconds is None or error.retry_after_seconds > 0


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/hal+json"]
)
def test_a_json_body_is_decoded(content_type: str) -> None:
    """The content type counts in any case and with parameters."""
    decoded = document(b'{"id": 1}', content_type, "/path", "s3cret")

    assert decoded == {"id": 1}


@pytest.mark.parametrize(
    ("body", "content_type", "kind"),
    [
        (b'{"id": 1}', "text/html; charset=utf-8", "not_json"),
        (b'{"id": 1}', "", "not_json"),
        (b"", "application/json", "broken_json"),
        (b'{"id": 1', "application/json", "broken_json"),
        (b'{"name": "\xe9"}', "application/json; charset=latin-1", "broken_json"),
        ('{"id": 1}'.encode("utf-16"), "application/json", "broken_json"),
    ],
)
def test_a_body_that_is_not_json_may_be_the_next_time(body: bytes, content_type: str, kind: str) -> None:
    """It counts against the pair, but is tried again."""
    with pytest.raises(TransientError) as caught:
        document(body, content_type, "/path", "s3cret")

    assert (caught.value.kind, caught.value.http_status, caught.value.spends_attempt) == (kind, 200, True)
    assert "/path" in str(caught.value)


def test_json_that_is_nested_too_deep_is_given_up() -> None:
    """Nothing that nests a hundred thousand levels gets better by waiting."""
    with pytest.raises(ItemError) as caught:
        document(b"[" * 100_000 + b"]" * 100_000, "application/json", "/path", "s3cret")

    assert caught.value.kind == "too_deep"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"X-RateLimit-Remaining": "3", "X-RateLimit-Reset": "20"}, (3, 20.0)),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW.timestamp()) + 30)}, (0, 30.0)),
        ({"RateLimit-Limit": "9", "RateLimit-Remaining": "0", "RateLimit-Reset": "5"}, (0, 5.0)),
        ({"RateLimit": "limit=100, remaining=50, reset=5"}, (50, 5.0)),
        ({"RateLimit": '"default";r=0;t=8'}, (0, 8.0)),
        ({"X-RateLimit-Remaining": "1", "X-RateLimit-Reset": "2", "RateLimit": "remaining=0, reset=9"}, (1, 2.0)),
        ({"X-RateLimit-Remaining": "0"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "0"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "-4"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW.timestamp()) - 30)}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW.timestamp()) * 1000)}, None),
        ({"X-RateLimit-Remaining": "-1", "X-RateLimit-Reset": "5"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "nan"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "inf"}, None),
        ({"X-RateLimit-Remaining": "none", "X-RateLimit-Reset": "5"}, None),
        ({"RateLimit": "later"}, None),
    ],
)
def test_quota_reads_every_form_of_the_header(headers: dict[str, str], expected: tuple[int, float] | None) -> None:
    """Requests left and the wait in seconds; what makes no sense is skipped."""
    found = quota(headers, NOW)

    assert found == expected


@given(st.dictionaries(st.sampled_from(["X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit"]), st.text()))
def test_quota_takes_any_text(headers: dict[str, str]) -> None:
    """A strange header never ends a run, and never makes a wait that is negative or endless."""
    found = quota(headers, NOW)

    assert found is None or (found[0] >= 0 and 0 < found[1] < 1_000_000_000)


@pytest.mark.parametrize(
    ("answer", "ids"),
    [
        ({"deployments": [{"id": 120, "slug": "a"}]}, {120}),
        ({"deployments": [{"id": "120"}, {"id": 121}]}, {120, 121}),
        ({"deployments": []}, set()),
        ({"deployments": {"id": 120}}, set()),
        ({"deployments": [120, None, {"slug": "a"}, {"id": None}, {"id": "x"}, {"id": -1}, {"id": 1.5}]}, set()),
        ({}, set()),
        ([], set()),
        (None, set()),
    ],
)
def test_deployment_ids_takes_numbers_and_strings(answer: object, ids: set[int]) -> None:
    """An answer of another shape names no deployment, and is no error."""
    found = deployment_ids(answer)

    assert found == ids


def _of_token(status: int) -> FatalError:
    return refusal_of_token(RefusedPathError("said", status))


def test_errors_of_a_token_say_what_to_set() -> None:
    """Each names the deployment and the variable."""
    missing, foreign, blind = token_missing(120), token_of_another(120, {122, 121}), _of_token(404)

    assert "SEMGREP_APP_TOKEN__120" in str(missing)
    assert "belongs to deployment 121, 122" in str(foreign)
    assert "Web API" in str(blind)
    assert {error.stop_code for error in (missing, foreign, blind)} == {3}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ""),
        (b" \n\t", ""),
        (b"no\n  such\tscan", ": no such scan"),
        (b"bad token s3cret here", ": bad token *** here"),
        (b"\x1b[31mred\x00", ": ?[31mred?"),
        (b"caf\xe9", ": caf\ufffd"),
        (b"x" * 1_000, ": " + "x" * QUOTED_CHARACTERS),
    ],
)
def test_a_body_is_quoted_on_one_line_without_the_token(body: bytes, expected: str) -> None:
    """No control character reaches a terminal, and no token a log."""
    text = quoted(body, "s3cret")

    assert text == expected


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_piece_of_a_quoted_body_holds_the_token(body: bytes, place: int) -> None:
    """Wherever the token stands, also where the piece is cut."""
    text = quoted(body[:place] + b"s3cret" + body[place:], "s3cret")

    assert "s3cret" not in text
    assert text.isprintable()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        ("x" * 999, "x" * 200),
    ],
)
def test_one_line_is_short_and_never_empty(error: object, expected: str) -> None:
    """An error without words has its name."""
    line = one_line(error)

    assert line == expected


@pytest.mark.parametrize(
    ("date", "at"),
    [
        ("Tue, 24 Nov 2026 10:00:00 GMT", datetime(2026, 11, 24, 10, tzinfo=UTC)),
        ("Tue, 24 Nov 2026 10:00:00 -0000", datetime(2026, 11, 24, 10, tzinfo=UTC)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -1400", None),
        ("Tue, 24 Nov 2026 10:00:00 +9999", None),
        ("yesterday", None),
    ],
)
def test_a_date_that_cannot_be_true_is_none(date: str, at: datetime | None) -> None:
    """Who reckons with such a clock leaves the calendar."""
    assert server_time({"Date": date}) == at


@given(st.text(max_size=40))
def test_the_date_may_be_any_text(date: str) -> None:
    """No header ends a run."""
    at = server_time({"Date": date})

    assert at is None or 2000 <= at.year <= 2100
