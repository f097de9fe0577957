"""Values of another kind than documented: what can be read is, and the rest is kept."""

from typing import Any

import pytest
from flatten_answers import META_FIELDS, ODD_TYPE, SCAN_FIELDS, STATS_FIELDS, drift_of, flat, meta_of, scan_of, stats_of

OUT_OF_RANGE = "out_of_range"


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("repository_id", True, ODD_TYPE),
        ("repository_id", 1.5, ODD_TYPE),
        ("repository_id", "007", ODD_TYPE),
        ("repository_id", " 7", ODD_TYPE),
        ("repository_id", "1_000", ODD_TYPE),
        ("repository_id", "\u0667", ODD_TYPE),
        ("repository_id", "", ODD_TYPE),
        ("repository_id", [7], ODD_TYPE),
        ("repository_id", str(2**63), OUT_OF_RANGE),
        ("exit_code", {"code": 1}, ODD_TYPE),
        ("exit_code", -0.5, ODD_TYPE),
        ("has_logs", 1, ODD_TYPE),
        ("has_logs", "True", ODD_TYPE),
        ("has_logs", ["true"], ODD_TYPE),
        ("enabled_products", "sast", ODD_TYPE),
        ("enabled_products", {"sast": True}, ODD_TYPE),
        ("enabled_products", ["sast", 1], ODD_TYPE),
        ("enabled_products", ["sast", None], ODD_TYPE),
        ("enabled_products", ["sast", "x" * 129], OUT_OF_RANGE),
        ("meta", [], ODD_TYPE),
        ("meta", "x", ODD_TYPE),
        ("meta", 0, ODD_TYPE),
        ("stats", [{"findings": 1}], ODD_TYPE),
        ("stats", False, ODD_TYPE),
    ],
)
def test_an_odd_value_of_the_scan_goes_to_its_extra(field: str, value: object, kind: str) -> None:
    """What a column can't hold is kept whole, under its own name, and told."""
    rows = flat({field: value})

    assert scan_of(rows) == dict.fromkeys(SCAN_FIELDS) | {"extra": {field: value}}
    assert (rows.products, rows.items) == ((), ())
    assert (rows.meta, rows.stats) == ((None,) * 17, (None, None, None))
    assert drift_of(rows) == {(field, kind)}


@pytest.mark.parametrize("field", [name for name in META_FIELDS if not name.endswith("_title")])
@pytest.mark.parametrize("value", [{}, {"a": "b"}, [], ["a"]])
def test_an_odd_value_of_meta_goes_to_its_extra(field: str, value: object) -> None:
    """Neither lists nor maps are texts."""
    rows = flat({"meta": {field: value}})

    assert meta_of(rows) == dict.fromkeys(META_FIELDS) | {"extra": {field: value}}
    assert drift_of(rows) == {(f"meta.{field}", ODD_TYPE)}


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("findings", {"code": 1}, ODD_TYPE),
        ("findings", "many", ODD_TYPE),
        ("total_time", {"seconds": 1}, ODD_TYPE),
        ("total_time", True, ODD_TYPE),
        ("total_time", "1:30", ODD_TYPE),
        ("total_time", "nan", ODD_TYPE),
        ("total_time", "1_0.5", ODD_TYPE),
        ("total_time", "1e999", OUT_OF_RANGE),
        ("total_time", 2**53 + 1, OUT_OF_RANGE),
        ("total_time", str(2**53 + 1), OUT_OF_RANGE),
    ],
)
def test_an_odd_value_of_stats_goes_to_its_extra(field: str, value: object, kind: str) -> None:
    """Neither of the two documented statistics is guessed from another form, nor rounded."""
    rows = flat({"stats": {field: value}})

    assert stats_of(rows) == dict.fromkeys(STATS_FIELDS) | {"extra": {field: value}}
    assert rows.items == ()
    assert drift_of(rows) == {(f"stats.{field}", kind)}


@pytest.mark.parametrize(
    ("value", "seconds"), [(100, 100.0), (17.32, 17.32), ("17.32", 17.32), ("100", 100.0), ("-1.5e1", -15.0), (0, 0.0)]
)
def test_seconds_are_read_from_numbers_and_their_texts(value: object, seconds: float) -> None:
    """`total_time` is a float in whatever form a number comes."""
    found = stats_of(flat({"stats": {"total_time": value}}))["total_time"]

    assert (found, type(found)) == (seconds, float)


@pytest.mark.parametrize(("value", "column"), [(True, True), (False, False), ("true", True), ("false", False)])
def test_truth_values_may_be_texts(value: object, column: bool) -> None:
    """`has_logs` is read in both forms, and told in neither."""
    rows = flat({"has_logs": value})

    assert (scan_of(rows)["has_logs"], rows.drift) == (column, ())


def test_products_are_a_sorted_set() -> None:
    """A product is one row, however often and in whatever order it is named."""
    rows = flat({"enabled_products": ["sca", "sast", "sca", "x" * 128]})

    assert (rows.products, rows.drift) == (("sast", "sca", "x" * 128), ())
    assert flat({"enabled_products": []}) == flat({})


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3.0),
        (-3, -3.0),
        (0.25, 0.25),
        ("12", 12.0),
        ("-12", -12.0),
        (2**53, float(2**53)),
        (2**53 + 2, float(2**53 + 2)),
        (2**70, float(2**70)),
        (str(2**70), float(2**70)),
        (1e300, 1e300),
    ],
)
def test_numbers_in_stats_become_items(value: object, number: float) -> None:
    """Whatever a float holds exactly is an item, integers also in the text form of 64-bit numbers."""
    rows = flat({"stats": {"m": {"n": value}}})

    assert (rows.items, rows.stats) == ((("m", "n", number),), (None, None, None))


@pytest.mark.parametrize(
    "value",
    [
        "many",
        "1.5",
        "007",
        "-0",
        "",
        " 1",
        "1\n",
        True,
        None,
        [1, 2],
        {},
        [{"n": 1}],
        2**53 + 1,
        str(2**53 + 1),
        "9" * 309,
        "9" * 5000,
    ],
)
def test_what_is_no_number_in_stats_stays_at_its_place(value: object) -> None:
    """What an item can't say exactly is kept in extra, under the same keys."""
    rows = flat({"stats": {"m": {"n": value, "one": 1}}})

    assert rows.items == (("m", "one", 1.0),)
    assert stats_of(rows)["extra"] == {"m": {"n": value}}


@pytest.mark.parametrize(
    ("stats", "items", "extra"),
    [
        ({"a": {"x" * 512: 1}}, [("a", "x" * 512, 1.0)], {}),
        ({"a": {"x" * 513: 1, "y": 2}}, [("a", "y", 2.0)], {"a": {"x" * 513: 1}}),
        ({"a" * 128: {"x": 1}}, [("a" * 128, "x", 1.0)], {}),
        ({"a" * 129: {"x": 1}}, [], {"a" * 129: {"x": 1}}),
        (
            {"a" * 126: {"b": {"x": 1, "y": {"z": 2}}}},
            [("a" * 126 + ".b", "x", 1.0)],
            {"a" * 126: {"b": {"y": {"z": 2}}}},
        ),
        ({"": {"": 1}}, [("", "", 1.0)], {}),
    ],
)
def test_items_have_keys_that_an_index_holds(
    stats: dict[str, Any], items: list[tuple[str, str, float]], extra: dict[str, Any]
) -> None:
    """Numbers under names that are too long for a key stay in extra."""
    rows = flat({"stats": stats})

    assert (list(rows.items), stats_of(rows)["extra"]) == (items, extra)


def test_two_numbers_of_one_name_are_both_kept() -> None:
    """Of two paths that give the same category and name, the first by name is the item, in any order of the answer."""
    stats = {"a": {"b": {"c": 2, "d": 3}}, "a.b": {"c": 1, "e": 4}}
    rows, again = (flat({"stats": dict(order)}) for order in (stats.items(), reversed(stats.items())))

    assert rows.content_hash == again.content_hash
    assert rows.items == (("a.b", "c", 2.0), ("a.b", "d", 3.0), ("a.b", "e", 4.0))
    assert stats_of(rows)["extra"] == {"a.b": {"c": 1}}
