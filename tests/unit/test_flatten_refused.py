"""Bodies and answers that are refused, and those that are read all the same."""

import math
from typing import Any

import pytest
from flatten_answers import BAD, FETCHED_AT, check_kept, flat, leaves, nested

from etl.errors import ItemError
from etl.model import Pair
from etl.transform.sanitize import MAX_DEPTH, decode
from etl.transform.scan import flatten


def refusal(document: object) -> tuple[str, str]:
    with pytest.raises(ItemError) as caught:
        flat(document)
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "$: the answer is a list, not an object"),
        (None, "$: the answer is null, not an object"),
        ("scan", "$: the answer is 'scan', not an object"),
        (7, "$: the answer is 7, not an object"),
        (2**64, "$: the answer is an integer beyond 64 bits, not an object"),
        (True, "$: the answer is true, not an object"),
        (math.nan, "$: the answer is nan, not an object"),
    ],
)
def test_an_answer_that_is_no_object_is_refused(document: object, message: str) -> None:
    """Any other JSON value is an error of this pair, and named."""
    assert refusal(document) == ("not_an_object", message)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"id": 7}, "$.id: expected scan 123, got 7"),
        ({"id": "7"}, "$.id: expected scan 123, got '7'"),
        ({"id": 123.5}, "$.id: expected scan 123, got 123.5"),
        ({"id": True}, "$.id: expected scan 123, got true"),
        ({"id": [123]}, "$.id: expected scan 123, got a list"),
        ({"id": {"id": 123}}, "$.id: expected scan 123, got an object"),
        ({"id": 2**64 + 123}, "$.id: expected scan 123, got an integer beyond 64 bits"),
        ({"id": "x\0\ud800" + "y" * 99}, f"$.id: expected scan 123, got 'x{BAD}{BAD}{'y' * 37}'"),
        ({"id": 123, "deployment_id": 9}, "$.deployment_id: expected deployment 120, got 9"),
    ],
)
def test_an_answer_about_another_scan_is_refused(ids: dict[str, Any], message: str) -> None:
    """Rows never get the key of a scan that they aren't about."""
    assert refusal(ids) == ("wrong_scan", message)


def test_one_is_not_true() -> None:
    """A truth value is no id, although Python says that `True == 1`."""
    with pytest.raises(ItemError, match="expected scan 1, got true"):
        flatten(Pair(1, 1), {"id": True}, FETCHED_AT)


@pytest.mark.parametrize("wrap", ["{", "["])
@pytest.mark.parametrize(
    ("path", "taken"),
    [(("x",), 1), (("meta", "x"), 2), (("stats", "x"), 2), (("exit_code",), 1), (("meta", "commit_author_name"), 2)],
)
def test_the_depth_of_an_answer_is_limited(wrap: str, path: tuple[str, ...], taken: int) -> None:
    """200 levels are kept wherever they are; one more is an error of this pair that says where."""

    def document(levels: int) -> Any:
        value = nested(levels - taken, wrap)
        for name in reversed(path):
            value = {name: value}
        return value

    kept = flat(document(MAX_DEPTH))
    kind, message = refusal(document(MAX_DEPTH + 1))

    assert list(leaves(document(MAX_DEPTH)))
    check_kept(document(MAX_DEPTH), kept)
    assert kind == "too_deep"
    assert message.startswith(f"$.{'.'.join(path)}")
    assert message.endswith(": the answer is nested more than 200 levels deep")
    assert len(message) < 300


def test_depth_is_limited_whatever_becomes_of_authors() -> None:
    """A value that would be dropped may not be deeper than one that is kept."""
    document = {"meta": {"commit_author_name": nested(MAX_DEPTH)}}

    for author in ("hash", "drop"):
        with pytest.raises(ItemError, match=r"^\$\.meta\.commit_author_name\.a.*nested more than 200 levels"):
            flat(document, author=author)


# Reading JSON.


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, "x", true, null]}', {"a": [1, 2.5, "x", True, None]}),
        (b"\xef\xbb\xbf {}\n", {}),
        (rb'["\ud800", "\udc00x", "\ud83d\ude00"]', ["\ud800", "\udc00x", "😀"]),
        (rb'{"\ud800": "\u0000"}', {"\ud800": "\0"}),
        (b"[NaN, Infinity, -Infinity]", ["NaN", "Infinity", "-Infinity"]),
        (b"[1e400, -1e400, 1e-400]", ["1e400", "-1e400", 0.0]),
        (b"18446744073709551616", 2**64),
        (b"[1" + b"0" * 5000 + b"]", ["1" + "0" * 5000]),
        (b"[NaN, 1" + b"0" * 4000 + b"]", ["NaN", 10**4000]),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"9007199254740993", 2**53 + 1),
    ],
)
def test_json_of_lenient_writers_is_read(body: bytes, value: object) -> None:
    """Surrogates, NaN and numbers past any limit come through without a loss of digits."""
    assert decode(body) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf",
        b'{"a":',
        b'{"a": 1',
        b"{} {}",
        b"{'a': 1}",
        b"<html></html>",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"a\nb"',
        b"[01]",
        b"nan",
        b"[" * 100,
        '{"a": 1}'.encode("utf-16"),
    ],
)
def test_what_is_no_json_is_a_value_error(body: bytes) -> None:
    """A broken body is told from a bad scan: it may be whole the next time."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is the parser's
        decode(body)

    assert str(caught.value)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000, b"[NaN," + b"[" * 100_000]
)
def test_a_body_of_endless_depth_is_no_traceback(body: bytes) -> None:
    """Nesting past what the parser bears is an error of this pair."""
    with pytest.raises(ItemError) as caught:
        decode(body)

    assert caught.value.kind == "too_deep"
