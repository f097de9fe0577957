"""What is kept of people: of authors what `[privacy] author` says, of texts all but addresses and trailers. Pure.

Names of branches and addresses of repositories and CI jobs stay, whoever they speak of.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal

from etl.model import Drift
from etl.transform.readers import to_json
from etl.transform.sanitize import MAX_DEPTH, PATH_MAX_CHARACTERS, clean, clean_number, clean_text, too_deep

HIDDEN: Final = "***"
AT: Final = "(?:@|%40)"
"""The sign in an address, also as URLs write it."""

_LOCAL: Final = r'[^\s<>()\[\]",:;@\\]'
# A host has a dot and ends in a word, or `lodash@4.17.21` would be an address. Between `<` and `>` any will do.
_ADDRESS: Final = re.compile(
    rf'(?:(?<!{_LOCAL}){_LOCAL}+|"[^"\r\n]{{1,64}}"){AT}(?:\[[^\]\s]+\]|(?:[\w-]+\.)+[^\W\d_][\w-]+)'
    r"|<[^<>\s]*@[^<>\s]*>"
)
_TRAILER_NAME: Final = (
    r"[a-z][\w-]*-by|(?:authored|off|reviewed|approved|tested|reported) by|b?cc|on-behalf-of|thanks-to"
    # These are ordinary words, too: they need an address behind them.
    r"|(?:co-?)?(?:author|committer|reviewer|approver|from|to)s?(?=[ \t]*:[^\r\n]{0,200}@)"
)
# To the end of the line, whose break may be that of quoted JSON, and of the indented lines that go on with it.
_TRAILER: Final = re.compile(
    rf"(?:(?<![\w\\-])|(?<=\\[nrt]))(?:{_TRAILER_NAME})[ \t]*:(?:[^\r\n\\]|\\(?![nr]))*(?:\r?\n[ \t]+[^\r\n]+)*",
    re.IGNORECASE,
)
# What an address or a trailer has left at the end of a title, and each blank that there is: `strip` takes these alone.
_LOOSE_ENDS: Final = "(,;" + "".join(filter(str.isspace, map(chr, range(0x3001))))
_PERSON: Final = re.compile(r"author(?!i[tsz]|ed)|committer|e[-_]?mail|user[-_]?name", re.IGNORECASE)


def without_people(text: str) -> str:
    """A text without mail addresses, and without trailers that name people, such as `Co-authored-by: Ann <a@b.de>`."""
    return _without_addresses(without_trailers(text))


def without_trailers(text: str, which: Callable[[str], bool] = lambda _: True) -> str:
    """A text without those of its trailers that are `which`."""
    if ":" not in text:  # most have neither trailer nor address, and to look for one takes long
        return text
    return _TRAILER.sub(lambda found: "" if which(found[0]) else found[0], text)


def _without_addresses(text: str) -> str:
    return _ADDRESS.sub(HIDDEN, text) if "@" in text or "%40" in text else text


def title_of(message: str) -> str:
    """The first line of a message that says something, without people; empty if none does."""
    lines = (line.strip() for line in without_trailers(message).splitlines())
    return _without_addresses(next(filter(None, lines), "")).rstrip(_LOOSE_ENDS)


@lru_cache(1024)
def person_in(name: str) -> str | None:
    """Whom a field is about, by its name: `commit_author` for `commit_author_name`; None if it is about nobody."""
    found = _PERSON.search(name)
    return name[: found.end()].lower() if found else None


def pseudonym(value: object, key: bytes, path: str = "", depth: int = 1) -> str:
    """32 hex digits that stand for a person, who can't be guessed without the key. Capitals make no difference, as in
    addresses and user names, nor does what no database takes. What isn't a text goes by its JSON.

    ItemError for what is nested too deep at its place in the answer.
    """
    for clean_leaf in (clean_text, clean_number):
        value = clean(value, path, depth, {}, clean_leaf)
    said = value if type(value) is str else to_json(value).decode()
    return blake2b(said.strip().casefold().encode(), digest_size=16, key=key).hexdigest()


@lru_cache(1024)
def _is_trailer(name: str) -> bool:
    """Whether a field is what YAML makes of a trailer."""
    return _TRAILER.match(f"{name}:") is not None


@dataclass(frozen=True, slots=True)
class Privacy:
    """What becomes of people. The key is made of the secret by `key_from`, and only `hash` needs it."""

    author: Literal["keep", "hash", "drop"] = "keep"
    key: bytes = field(default=b"", repr=False)

    @property
    def hides(self) -> bool:
        """Whether people are hidden at all."""
        return self.author != "keep"

    def person(self, value: object, path: str = "", depth: int = 1) -> str | None:
        """What is kept of a name, an address or a picture."""
        digits = pseudonym(value, self.key, path, depth)  # what is too deep is so whatever becomes of it
        return digits if self.author == "hash" else None

    def left_of(self, extra: dict[str, Any], prefix: str) -> dict[str, Any]:
        """What is kept of the fields of a level that have no column. `prefix` is its path."""
        if not self.hides:
            return extra
        return self._fields(extra, prefix.rstrip("."), 2 if prefix else 1, without_people)

    def drift(self, notes: Iterable[Drift]) -> tuple[Drift, ...]:
        """Drift, whose paths hold names from the answer."""
        return tuple(Drift(without_people(path), kind) for path, kind in notes) if self.hides else tuple(notes)

    def _value(self, value: Any, path: str, depth: int, hide: Callable[[str], str]) -> Any:
        if type(value) is str:
            return hide(value)
        if depth > MAX_DEPTH and type(value) in (dict, list):
            raise too_deep(f"$.{path}")
        if type(value) is list:
            return [self._value(member, f"{path}[]"[:PATH_MAX_CHARACTERS], depth + 1, hide) for member in value]
        return self._fields(value, path, depth, hide) if type(value) is dict else value

    def _fields(self, source: dict[str, Any], path: str, depth: int, hide: Callable[[str], str]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name in sorted(source):  # the same whatever their order was
            member, inside = source[name], f"{path}.{name}"[:PATH_MAX_CHARACTERS].lstrip(".")
            if person_in(name) and member is not None and type(member) is not bool:
                found = self.person(member, inside, depth + 1)
            elif _is_trailer(name):
                found = None
            else:
                found = self._value(member, inside, depth + 1, title_of if "title" in name.lower() else hide)
            if found is not None or member is None:
                shown = without_people(name)
                while shown in kept:
                    shown += HIDDEN
                kept[shown] = found
        return kept


KEEP: Final = Privacy()


def key_from(secret: str) -> bytes:
    """The key of pseudonyms that a secret text stands for."""
    return blake2b(secret.encode(), digest_size=32, person=b"scan-etl people").digest()
