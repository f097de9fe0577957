"""The statistics of a scan: its maps of numbers become rows. Pure.

What is taken is removed from the object, and what is no exact number stays where it is, for `extra`.
"""

from typing import Any, Final

from etl.model import Drift, StatItem
from etl.transform.fields import LANGUAGE, STATS, take
from etl.transform.readers import DRIFT_ODD_TYPE, KEY_MAX_CHARACTERS, exact_float
from etl.transform.sanitize import EXACT_INT, Notes

NAME_MAX_CHARACTERS: Final = 512
"""Longest name of an item; a test compares it with `schema.NAME_TEXT_LENGTH`, out of reach from here."""
PARSE_RATE, SUPPLY_CHAIN = "parse_rate", "supply_chain_stats"

_Numbers = dict[str, dict[str, float]]


def take_languages(stats: dict[str, Any], notes: Notes) -> tuple[dict[str, Any], ...]:
    """The rows of `scan_languages`, taken out of `stats["parse_rate"]`: how much of each language was parsed."""
    rates = stats.get(PARSE_RATE)
    if type(rates) is not dict:
        if rates is not None:
            notes[Drift(LANGUAGE.prefix[:-3], DRIFT_ODD_TYPE)] = None
        return ()
    rows = []
    left = dict(rates)
    for language in sorted(rates):
        if type(rates[language]) is dict and len(language) <= KEY_MAX_CHARACTERS:
            numbers = dict(rates[language])
            row = take(numbers, LANGUAGE, notes)
            if any(count is not None for count in row.values()):
                rows.append({"language": language, **row})
                left[language] = numbers
                if not numbers:
                    del left[language]
    stats[PARSE_RATE] = left
    if not left and rates:
        del stats[PARSE_RATE]
    return tuple(rows)


def take_items(stats: dict[str, Any]) -> tuple[StatItem, ...]:
    """The rows of `scan_stat_items`: the numbers in all maps inside `stats`, taken out of it, and what is counted of
    the subprojects of the supply chain, which stay. Fields that have columns of their own are left alone."""
    numbers = _supply_chain(stats.get(SUPPLY_CHAIN))
    own = {field.name: stats.pop(field.name) for field in STATS.fields if field.name in stats}
    rest = _take_below(stats, "", numbers)
    stats.clear()
    stats |= rest | own
    return tuple(
        StatItem(category, name, numbers[category][name])
        for category in sorted(numbers)
        for name in sorted(numbers[category])
    )


def _supply_chain(found: Any) -> _Numbers:
    """How many subprojects were resolved, and how many not, by reason; and the dependencies by ecosystem."""
    subprojects = found.get("subprojects_stats") if type(found) is dict else None
    numbers: _Numbers = {}

    def add(category: str, name: object, count: int) -> None:
        if type(name) is str and len(name) <= NAME_MAX_CHARACTERS:
            counts = numbers.setdefault(f"{SUPPLY_CHAIN}.{category}", {})
            counts[name] = counts.get(name, 0.0) + count

    for one in subprojects if type(subprojects) is list else ():
        if type(one) is not dict:
            continue
        resolved = one.get("resolved_stats")
        if type(resolved) is dict:
            add("subprojects", "resolved", 1)
            count = exact_float(resolved.get("dependency_count"))
            if count is not None:
                add("dependencies", resolved.get("ecosystem"), int(count))
        elif (reason := one.get("unresolved_reason")) is not None:
            add("unresolved", reason, 1)
    return numbers


def _take_below(node: dict[str, Any], prefix: str, numbers: _Numbers) -> dict[str, Any]:
    """Put the numbers in the objects inside `node` into `numbers`, by category and name; return a copy of the rest.

    `{"a.b": {"c": 1}, "a": {"b": {"c": 2}}}` wants one item twice: the first has it in the order of the names, not
    in that of the answer, so that the same content always gives the same rows. The longest category ends the descent.
    """
    rest = dict(node)
    for name in sorted([name for name, value in node.items() if type(value) is dict and value]):
        category = prefix + name
        if len(category) <= KEY_MAX_CHARACTERS:
            left = _take_numbers(node[name], category, numbers)
            if left:
                left = _take_below(left, category + ".", numbers)
            if left:
                rest[name] = left
            else:
                del rest[name]
    return rest


def _take_numbers(node: dict[str, Any], category: str, numbers: _Numbers) -> dict[str, Any]:
    rest = {}
    taken = numbers.get(category, {})
    for name, value in node.items():
        if type(value) is int and -EXACT_INT <= value <= EXACT_INT:  # `exact_float` does this too, but not as fast
            number: float | None = float(value)
        else:
            number = exact_float(value)
        if number is None or name in taken or len(name) > NAME_MAX_CHARACTERS:
            rest[name] = value
        else:
            taken[name] = number
    if taken:
        numbers[category] = taken
    return rest
