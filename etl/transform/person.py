"""A person whom somebody wants forgotten: what of the stored rows is about them, and what is left of it. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from etl.transform.fields import AUTHORS, TITLES
from etl.transform.privacy import AT, HIDDEN, person_in, without_trailers
from etl.transform.readers import to_json

MESSAGES: Final = frozenset({"extra", "error"}) | TITLES
"""The columns in which a user name can mean a person. Elsewhere, as in branches, it is the name of something else."""
_BESIDE: Final = frozenset({"name", "login"})  # in an object with an `email` or a `username`


class Trace(NamedTuple):
    """What a row holds of a person: `changes` are the new values by column, and `names` other names of theirs."""

    changes: dict[str, Any]
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody, by a mail address or a user name. `pseudonym` is what `hash` keeps of it; empty without a key."""

    name: str
    pseudonym: str = ""

    @property
    def has_address(self) -> bool:
        """Whether it is an address. No user name has its sign."""
        return "@" in self.name

    def trace(self, row: Mapping[str, Any]) -> Trace:
        """What has to change in a row. All columns of an author are about one person."""
        whose = {_author(column) for column in row.keys() & AUTHORS if self._names_author(column, row[column])}
        changes = {}
        for column, value in row.items():
            if value is not None:
                left = None if column in AUTHORS and _author(column) in whose else self.left_of(column, value)
                if left != value:
                    changes[column] = left
        return Trace(changes, self._other_names(row, whose))

    def left_of(self, column: str, value: Any) -> Any:
        """What is left of the value of a column."""
        if type(value) is not str:
            return self._json(value) if self._is_in(to_json(value).decode()) else value
        if column.endswith("_author_name") and not self.has_address:  # `Max` in `Max Muster` needn't be this one
            return None if self._pattern.fullmatch(value.strip()) else value
        return self._text(value) or None

    def _names_author(self, column: str, value: Any) -> bool:
        says_who = column.endswith(("_username", "_email") if self.has_address else "_username")
        return says_who and value is not None and self._is_in(value)

    def _other_names(self, row: Mapping[str, Any], whose: set[str]) -> frozenset[str]:
        if not whose:
            return frozenset()
        names = {
            row[column]
            for column in row.keys() & AUTHORS
            if _author(column) in whose and column.endswith(("_username", "_email"))
        }
        is_hidden = any(name == self.pseudonym for name in names)
        return frozenset() if is_hidden else frozenset(name for name in names if name and not self._is_in(name))

    @property
    def _pattern(self) -> re.Pattern[str]:
        return _pattern_of(self.name, self.pseudonym)

    def _is_in(self, text: str) -> bool:
        folded = text.casefold()
        if self.name.casefold().partition("@")[0] not in folded and (self.pseudonym or "\0") not in folded:
            return False  # most texts are about others, and a pattern takes ten times as long to say so
        return self._pattern.search(text) is not None

    def _text(self, text: str) -> str:
        return self._pattern.sub(HIDDEN, without_trailers(text, self._is_in)) if self._is_in(text) else text

    def _json(self, value: Any) -> Any:
        if type(value) is str:
            return self._text(value)
        if type(value) is list:
            return [self._json(member) for member in value]
        if type(value) is not dict:
            return value
        about = {name: person_in(name) for name in value}
        whose = {about[name] for name, member in value.items() if about[name] and self._is_in(to_json(member).decode())}
        hidden = {name for name in value if about[name] in whose or (name in _BESIDE and whose & {"email", "username"})}
        return {self._text(name): HIDDEN if name in hidden else self._json(member) for name, member in value.items()}


def _author(column: str) -> str:
    return column.partition("_author_")[0]


@lru_cache
def _pattern_of(name: str, pseudonym: str) -> re.Pattern[str]:
    """A name as a whole word, whatever its capitals. The line break before it may be that of quoted JSON.

    `bob+ann@x.de` is somebody else than `ann@x.de`, and the `ann` in either needn't be the user `ann`.
    """
    word = re.escape(name).replace("@", AT)
    after = r"(?![\w-]|\.\w)" if "@" in name else r"(?![\w@-]|\.\w)"
    alternative = f"|(?<![0-9a-f]){pseudonym}(?![0-9a-f])" if pseudonym else ""
    return re.compile(rf"(?:(?<![\w\\+-])(?<!\w\.)|(?<=\\[nrt])){word}{after}{alternative}", re.IGNORECASE)
