"""What no database takes, authors that are hidden, and the content hash."""

import json
import math
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import pytest
from flatten_answers import (
    BAD,
    DOCUMENTED,
    FETCHED_AT,
    KEY,
    META_FIELDS,
    ODD_TYPE,
    PAIR,
    drift_of,
    flat,
    meta_of,
    scan_of,
    stats_of,
)

from etl.model import Drift
from etl.transform.fields import MAX_DRIFT
from etl.transform.scan import flatten

AUTHOR_FIELDS = [name for name in META_FIELDS if "_author_" in name]


# What no database takes.


def test_bad_text_is_replaced() -> None:
    """NUL and lone surrogates become U+FFFD in values and names, at every place that is stored."""
    rows = flat(
        {
            "shiny\0": "\ud800x",
            "enabled_products": ["a\0"],
            "meta": {"branch": "ma\0in", "commit_title": {"f\udfff": "x"}, "x": [{"\0": "\0"}]},
            "stats": {"m\0": {"n\ud800": 1, "t": "\0"}},
        }
    )

    assert scan_of(rows)["extra"] == {f"shiny{BAD}": f"{BAD}x"}
    assert rows.products == (f"a{BAD}",)
    assert (meta_of(rows)["branch"], meta_of(rows)["commit_title"]) == (f"ma{BAD}in", f"f{BAD}: x")
    assert meta_of(rows)["extra"] == {"x": [{BAD: BAD}]}
    assert rows.items == ((f"m{BAD}", f"n{BAD}", 1.0),)
    assert stats_of(rows)["extra"] == {f"m{BAD}": {"t": BAD}}
    assert {path for path, kind in drift_of(rows) if kind == "bad_text"} == {
        f"shiny{BAD}",
        "enabled_products[]",
        "meta.branch",
        f"meta.commit_title.f{BAD}",
        f"meta.x[].{BAD}",
        f"stats.m{BAD}",
        f"stats.m{BAD}.n{BAD}",
        f"stats.m{BAD}.t",
    }


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "C:\\temp", "\ufffd", "😀", '"\n\t\x7f'])
def test_good_text_stays_as_it_is(text: str) -> None:
    """What only looks like an escape of a NUL is a text like any other."""
    document = {"shiny": {text: text}, "meta": {"branch": text}, "stats": {"m": {text: 1}}}
    rows = flat(document)

    assert scan_of(rows)["extra"] == {"shiny": {text: text}}
    assert (meta_of(rows)["branch"], rows.items) == (text, (("m", text, 1.0),))
    assert {kind for _, kind in drift_of(rows)} == {"unknown_field"}


def test_a_float_beyond_what_integers_are_exact_is_kept_as_its_text() -> None:
    """PostgreSQL's JSONB would give back an integer that isn't quite the same number."""
    rows = flat({"repository_id": 1e300, "stats": {"findings": 1e19, "m": {"n": 1e19}}, "x": [2.0**53, -(2.0**53) * 2]})

    assert scan_of(rows)["extra"] == {"repository_id": "1e+300", "x": [2.0**53, "-1.8014398509481984e+16"]}
    assert stats_of(rows)["extra"] == {"findings": "1e+19"}
    assert rows.items == (("m", "n", 1e19),)
    assert ("x[]", "big_number") in drift_of(rows)


def test_names_that_become_equal_by_cleaning_all_survive() -> None:
    """U+FFFD is added until each name is its own; a name that was good stays as it is."""
    names = dict(zip(["\0", BAD, "\ud800", "\ud801"], [1, 2, 3, 4], strict=True))
    rows, again = (flat({"x": dict(order)}) for order in (names.items(), reversed(names.items())))

    assert scan_of(rows)["extra"] == {"x": {BAD: 2, BAD * 2: 1, BAD * 3: 3, BAD * 4: 4}}
    assert rows.content_hash == again.content_hash


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**300])
def test_integers_beyond_64_bits_become_texts(number: int) -> None:
    """Their digits are kept, and the change is told."""
    rows = flat({"repository_id": number, "x": [{"y": number}], "meta": {"z": number}, "stats": {"w": number}})

    assert scan_of(rows)["repository_id"] is None
    assert scan_of(rows)["extra"] == {"repository_id": str(number), "x": [{"y": str(number)}]}
    assert (meta_of(rows)["extra"], stats_of(rows)["extra"]) == ({"z": str(number)}, {"w": str(number)})
    assert drift_of(rows) >= {
        ("repository_id", "out_of_range"),
        ("repository_id", "big_number"),
        ("x[].y", "big_number"),
        ("meta.z", "big_number"),
        ("stats.w", "big_number"),
    }


def test_integers_of_any_size_are_survived() -> None:
    """An integer of more digits than Python prints is kept all the same."""
    digits = "1" + "0" * 5000
    rows = flat({"x": 10**5000, "meta": {"branch": 10**5000}, "stats": {"m": {"n": 10**5000}}})

    assert scan_of(rows)["extra"] == {"x": digits}
    assert meta_of(rows)["branch"] == digits
    assert (rows.items, stats_of(rows)["extra"]) == ((), {"m": {"n": digits}})


def test_a_number_never_becomes_a_product() -> None:
    """A list with an integer beyond 64 bits is no list of texts, although that integer is kept as one."""
    rows = flat({"enabled_products": ["sast", 2**63], "x\0": 1})

    assert rows.products == ()
    assert scan_of(rows)["extra"] == {"enabled_products": ["sast", str(2**63)], f"x{BAD}": 1}
    assert drift_of(rows) == {
        ("enabled_products", ODD_TYPE),
        ("enabled_products[]", "big_number"),
        (f"x{BAD}", "bad_text"),
        (f"x{BAD}", "unknown_field"),
    }


@pytest.mark.parametrize(("number", "text"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_numbers_that_are_not_finite_become_texts(number: float, text: str) -> None:
    """They are kept by name, and no column, item or extra has them as numbers."""
    rows = flat(
        {
            "exit_code": number,
            "meta": {"branch": number, "x": [number]},
            "stats": {"total_time": number, "m": {"n": number}},
        }
    )

    assert scan_of(rows)["extra"] == {"exit_code": text}
    assert (meta_of(rows)["branch"], meta_of(rows)["extra"]) == (text, {"x": [text]})
    assert (rows.items, stats_of(rows)["extra"]) == ((), {"total_time": text, "m": {"n": text}})
    assert ("meta.x[]", "out_of_range") in drift_of(rows)


def test_drift_is_bounded() -> None:
    """However odd an answer is, its drift stays small: few entries, short paths, each once."""
    names = [f"{number:05}{'x' * 400}\0" for number in range(200)]
    for document in ({name[:-1]: 1 for name in names}, dict.fromkeys(names, 1), {"meta": {"x": names}}):
        rows = flat(document)

        assert len(rows.drift) <= MAX_DRIFT
        assert len(set(rows.drift)) == len(rows.drift)
        assert all(len(drift.path) <= 200 for drift in rows.drift)
        assert "\0" not in "".join(drift.path for drift in rows.drift)


def test_a_path_is_told_once_for_fields_that_look_alike() -> None:
    """A field `meta.x` of the scan and a field `x` of meta have the same path: one entry."""
    assert flat({"meta.x": 1, "meta": {"x": 1}}).drift == (Drift("meta.x", "unknown_field"),)


# Privacy.


def blake(text: str) -> str:
    return blake2b(text.casefold().encode(), digest_size=16, key=KEY).hexdigest()


def test_authors_can_be_hashed() -> None:
    """Each of the author fields becomes 32 hex digits of its text and the key; everything else stays."""
    document = json.loads(DOCUMENTED)
    kept, hashed = meta_of(flat(document)), meta_of(flat(document, author="hash"))

    assert hashed == kept | {name: blake(kept[name]) for name in AUTHOR_FIELDS}
    assert len(AUTHOR_FIELDS) == 6


def test_authors_can_be_dropped() -> None:
    """None of the author fields is stored; everything else stays."""
    document = json.loads(DOCUMENTED)
    kept, dropped = meta_of(flat(document)), meta_of(flat(document, author="drop"))

    assert dropped == kept | dict.fromkeys(AUTHOR_FIELDS)


@pytest.mark.parametrize("value", [{"name": "Sven"}, ["Sven"]])
def test_an_odd_author_is_hidden_as_well(value: object) -> None:
    """The value of an author field is never stored in extra, where its type would have brought it."""
    document = {"meta": {"commit_author_name": value, "x": 1}}
    kept, hashed, dropped = (flat(document, author=author) for author in ("keep", "hash", "drop"))
    text = json.dumps(value, separators=(",", ":"))

    assert meta_of(kept)["extra"] == {"commit_author_name": value, "x": 1}
    assert meta_of(hashed)["extra"] == {"commit_author_name": blake(text), "x": 1}
    assert meta_of(dropped)["extra"] == {"x": 1}
    assert "Sven" not in repr((hashed, dropped))
    assert kept.drift == hashed.drift == dropped.drift


@pytest.mark.parametrize("name", ["Sv\0en", "Sv\ud800en", ["Sv\0en"], ["Sv\ud800en"]])
def test_an_author_has_one_hash(name: object) -> None:
    """The hash of an author doesn't depend on what else is in the answer."""
    plain = flat({"meta": {"commit_author_name": name}}, author="hash")
    dirty = flat({"meta": {"commit_author_name": name, "branch": "\0"}}, author="hash")

    found = [
        meta_of(rows)["commit_author_name"] or meta_of(rows)["extra"]["commit_author_name"] for rows in (plain, dirty)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 32


def test_a_number_for_an_author_is_hashed_as_its_text() -> None:
    """A user name that came as a number has the hash of its digits."""
    rows = flat({"meta": {"commit_author_username": 7, "commit_author_email": None}}, author="hash")

    assert meta_of(rows)["commit_author_username"] == blake("7")
    assert meta_of(rows)["commit_author_email"] is None


# The content hash.


@pytest.mark.parametrize(
    "change",
    [
        {"repository_id": 8},
        {"completed_at": "2023-11-18T23:28:12.392Z"},
        {"has_logs": False},
        {"enabled_products": ["secrets", "sast"]},
        {"meta": {}},
        {"stats": {"findings": 5, "total_time": 100.5}},
        {"stats": {"findings": 5, "total_time": 100, "m": {"n": 1}}},
        {"stats": {"findings": 5, "total_time": 100, "x": 1}},
        {"x": None},
    ],
)
def test_any_change_changes_the_hash(change: dict[str, Any]) -> None:
    """Each table has its part in the content hash."""
    document = json.loads(DOCUMENTED)

    assert flat(document | change).content_hash != flat(document).content_hash


def test_the_hash_is_about_the_rows_alone() -> None:
    """Neither the time of the fetch nor another way to write the same values changes the content hash."""
    document = json.loads(DOCUMENTED)
    other = document | {"id": "123", "exit_code": "123", "stats": {"total_time": "100", "findings": 5.0}}
    later = flatten(PAIR, other, FETCHED_AT + timedelta(days=1))

    assert later.content_hash == flat(document).content_hash
    assert later.fetched_at == FETCHED_AT + timedelta(days=1)
