"""Properties of rows: whatever an answer holds is found again, and only what every database takes."""

import json
import math
import random
from datetime import datetime, timedelta
from typing import Any

from flatten_answers import (
    AUTHORS,
    META_FIELDS,
    SCAN_FIELDS,
    STATS_FIELDS,
    Author,
    check_kept,
    drift_of,
    flat,
    meta_of,
    names,
    nested,
    replaced,
    scan_of,
    stats_of,
    storable,
    texts,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etl.errors import ItemError
from etl.transform.fields import LANGUAGE, MAX_DRIFT
from etl.transform.sanitize import decode

integers = st.integers() | st.integers(-(2**70), 2**70) | st.sampled_from([2**53 + 1, 2**63, -(2**63) - 1, 10**400])
instants = st.datetimes(timezones=st.timezones() | st.none()).map(str)
scalars = st.none() | st.booleans() | integers | st.floats() | texts | integers.map(str) | instants
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
deep_values = st.builds(nested, st.integers(100, 260), st.sampled_from("{["))


def objects(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of the documented fields, and a few of their own."""
    known = st.fixed_dictionaries({}, optional=fields)
    own_names = texts.filter(lambda name: name not in ("id", "deployment_id"))
    return st.builds(lambda some, others: some | others, st.dictionaries(own_names, values, max_size=3), known)


languages = st.dictionaries(
    texts, st.dictionaries(st.sampled_from([*LANGUAGE.columns, "m"]), values) | values, max_size=3
)


stats_objects = objects(
    dict.fromkeys(STATS_FIELDS, values)
    | {"m": st.dictionaries(texts, values, max_size=5), "parse_rate": languages | values}
)
meta_objects = objects(
    dict.fromkeys((*META_FIELDS, "true"), texts | values)
    | {"commit_title": st.dictionaries(texts, scalars, max_size=2)}
)
documents = objects(
    dict.fromkeys(SCAN_FIELDS, values)
    | {
        "started_at": instants | values,
        "enabled_products": st.lists(texts, max_size=3) | values,
        "meta": meta_objects | values,
        "stats": stats_objects | values,
        "id": st.sampled_from([123, "123", 123.0, None]),
    }
)


def check_storable(value: Any) -> None:
    """Fail for what some database refuses or changes."""
    if isinstance(value, str):
        assert value == replaced(value)
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, int):
        assert -(2**63) <= value < 2**63
    elif isinstance(value, datetime):
        assert value.utcoffset() == timedelta(0)
    elif isinstance(value, dict):
        check_storable([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for member in value:
            check_storable(member)


def shuffled(value: Any, chance: random.Random) -> Any:
    if isinstance(value, list):
        return [shuffled(member, chance) for member in value]
    if not isinstance(value, dict):
        return value
    order = list(value)
    chance.shuffle(order)
    return {name: shuffled(value[name], chance) for name in order}


@settings(max_examples=150)
@given(documents)
@example({"meta": {"on": 5, "true": "5"}})
@example({"\ud800": 2**63, "enabled_products": [2**63]})
@example({"stats": {"a.": {"b": 1}, "a": {"": {"b": 2}, "\0": {"b": 3}}}})
def test_every_leaf_is_found_again(document: dict[str, Any]) -> None:
    """No value of an answer is lost, whatever its type and wherever it stands."""
    check_kept(document, flat(document))


@settings(max_examples=100)
@given(documents, st.sampled_from(AUTHORS))
def test_rows_hold_only_what_every_database_takes(document: dict[str, Any], author: Author) -> None:
    """No NUL, no lone surrogate, no NaN, no integer beyond 64 bits, no key that is too long or there twice."""
    rows = flat(document, author=author)

    extras = [scan_of(rows)["extra"], meta_of(rows)["extra"], stats_of(rows)["extra"]]
    check_storable([rows.scan, rows.meta, rows.stats, rows.products, rows.languages, rows.items, rows.drift, extras])
    keys = [(category, name) for category, name, _ in rows.items]
    assert keys == sorted(set(keys))
    assert list(rows.products) == sorted(set(rows.products))
    assert all(len(category) <= 128 and len(name) <= 512 for category, name in keys)
    assert rows.final is (rows.scan["completed_at"] is not None)


@settings(max_examples=100)
@given(documents, st.randoms(use_true_random=False))
def test_the_order_of_names_changes_nothing(document: dict[str, Any], chance: random.Random) -> None:
    """Two answers that differ only in the order of their names give the same rows and the same hash."""
    rows, again = flat(document), flat(shuffled(document, chance))

    assert again._replace(drift=()) == rows._replace(drift=())
    assert drift_of(again) == drift_of(rows) or len(rows.drift) == MAX_DRIFT


@settings(max_examples=100)
@given(values | deep_values | st.dictionaries(names, values | deep_values, max_size=4))
def test_any_json_value_becomes_rows_or_one_sentence(document: object) -> None:
    """Nothing that JSON can say ends in a traceback."""
    error = outcome(document)

    assert error is None or error.kind in {"not_an_object", "wrong_scan", "too_deep"}
    assert error is None or str(error).startswith("$")
    check_storable(str(error))


def outcome(document: object) -> ItemError | None:
    try:
        flat(document)
    except ItemError as error:
        return error
    return None


@settings(max_examples=100)
@given(values)
def test_what_was_written_is_read(value: object) -> None:
    """Reading gives back what any writer of JSON was given; NaN and Infinity as their texts."""
    read = decode(json.dumps({"x": value}).encode())

    assert json.dumps(read) == json.dumps({"x": finite(value)})


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: finite(member) for name, member in value.items()}
    if isinstance(value, list):
        return [finite(member) for member in value]
    return storable(value) if isinstance(value, float) and not math.isfinite(value) else value


@settings(max_examples=150)
@given(
    st.binary(max_size=40)
    | st.text(st.sampled_from('{}[]",:0123456789.eE+-\\ud8adNaNInfinitytrue \0\ufeff')).map(str.encode)
    | st.builds(lambda value, end: json.dumps(value).encode()[:end], values, st.integers(0, 60))
)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    """Whatever a server sends is no JSON, or a value that becomes rows or is refused in one sentence."""
    try:
        refused = outcome(decode(body))
    except ValueError:
        refused = None

    assert refused is None or refused.kind in {"not_an_object", "wrong_scan", "too_deep"}
