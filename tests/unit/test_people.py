"""Names and addresses of people: gone where a message stands, and pseudonyms that nobody turns back without the key."""

import json
import re
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl.model import Pair, ScanRows
from etl.semgrep.responses import quoted
from etl.transform.person import Person
from etl.transform.privacy import KEEP, Privacy, key_from, person_in, pseudonym, title_of, without_people
from etl.transform.scan import flatten
from etl.transform.search_page import read_page

KEY = key_from("a secret of sixteen")
HASH, DROP = Privacy("hash", KEY), Privacy("drop")
AT = datetime(2026, 3, 1, tzinfo=UTC)
ADDRESS = "Ann.Muster+x@mail.example.com"
TRAILERS = [
    "Co-authored-by",
    "Signed-off-by",
    "reviewed-by",
    "CC",
    "On-behalf-of",
    "Thanks-to",
    "Author",
    "Reviewed by",
]

words = st.text(st.sampled_from("abcdefghij XYZ.,-()/#:'\"äß"), max_size=30)
breaks = st.sampled_from(["\n", "\r\n", "\n\n"])
names = st.text(st.sampled_from("QWERTYUIOP äß'\"-"), min_size=1, max_size=20).map(lambda name: f"Q{name}Q")


def flat(document: object, privacy: Privacy) -> ScanRows:
    return flatten(Pair(120, 123), document, AT, privacy)


@given(words, breaks, st.sampled_from(TRAILERS), names, st.emails(), words)
def test_no_trailer_stays(before: str, line_break: str, trailer: str, name: str, address: str, after: str) -> None:
    """Wherever it stands in a message, and whether its line breaks are real or those of quoted JSON."""
    message = line_break.join([before, f"{trailer}: {name} <{address}>", after])

    for text in (message, json.dumps(message, ensure_ascii=False), message.replace("\n", "\\n").replace("\r", "\\r")):
        for left in (without_people(text), title_of(text)):
            assert name not in left
            assert address not in left


@given(words, st.emails(), words)
def test_no_address_stays(before: str, address: str, after: str) -> None:
    """Whatever it stands beside, and also as URLs write it."""
    for written in (address, f"<{address}>", f'"{address}"', f"mailto:{address}", address.replace("@", "%40")):
        left = without_people(f"{before} {written} {after}")
        assert written not in left
        assert address not in left


@given(st.text(), st.sampled_from(["", "\n", "\nCo-authored-by: A <a@b.de>"]))
@example("0\xa0;", "")
@example("0;\u3000,\x85", "\n")
def test_a_title_is_one_line(message: str, end: str) -> None:
    """And hiding it once more changes nothing."""
    found = title_of(message + end)

    assert len(found.splitlines()) <= 1
    assert title_of(found) == found


@given(st.text(st.sampled_from("abc deXY.,-/#'äß"), max_size=60))
def test_a_title_that_names_nobody_stays(title: str) -> None:
    """But for the blanks around it, and what stands at its end for no reason then."""
    assert title_of(title) == title.strip().rstrip(" ,")
    assert without_people(title) == title


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("fix: x\n\nWhy.\n\nCo-authored-by: A <a@example.com>\n", "fix: x"),
        ("\n \nCo-authored-by: A <a@x>\nfix: x", "fix: x"),
        ("fix: x (Co-authored-by: A <a@x>)", "fix: x"),
        ("fix: x Signed-off-by: Ann Muster", "fix: x"),
        ("Ask ann@example.com why", "Ask *** why"),
        ("Reviewed-by: Ann", ""),
        ("author: rename the field", "author: rename the field"),
        ("Author: Ann <a@example.com>", ""),
        ("bump lodash@4.17.21, actions/checkout@v4", "bump lodash@4.17.21, actions/checkout@v4"),
        ("mention @ann", "mention @ann"),
    ],
)
def test_titles(message: str, title: str) -> None:
    """The first line that says something; of versions and mentions nothing is an address."""
    assert title_of(message) == title


def test_a_trailer_ends_with_its_line() -> None:
    """What follows stays, unless it is the rest of a folded one."""
    assert without_people("a\nCc: Ann <a@x.de>\nb") == "a\n\nb"
    assert without_people("a\nCo-authored-by: Ann\n Muster <a@x.de>\nb") == "a\n\nb"
    assert without_people(r'{"m": "a\n\nCc: Ann\nb"}') == r'{"m": "a\n\n\nb"}'


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("commit_author_name", "commit_author"),
        ("committerEmail", "committer"),
        ("e-mail", "e-mail"),
        ("userName", "username"),
        ("authorized", None),
        ("authority", None),
        ("authored_at", None),
        ("branch", None),
    ],
)
def test_names_of_fields_speak_of_people(name: str, whose: str | None) -> None:
    """Also those that no answer had so far."""
    assert person_in(name) == whose


MESSAGE = f"fix: x\n\nAsk {ADDRESS}.\n\nCo-authored-by: Ann Muster <{ADDRESS}>\n"
EVERYWHERE = {
    "message": MESSAGE,
    "meta": {
        "commit_title": MESSAGE,
        "pull_request_title": {"a": MESSAGE, "Reviewed-by": "Ann Muster"},
        "commit_author_name": "Ann Muster",
        "commit_author_email": ADDRESS,
        "committer": {"name": "Ann Muster", "email": ADDRESS},
        "notes": [{"deep": [MESSAGE]}],
        "branch": "main",
    },
    "stats": {
        "errors": [MESSAGE],
        "by_person": {ADDRESS: 3, "other": 4},
        "parse_rate": {ADDRESS: {"num_targets": 1}},
        ADDRESS: "x",
    },
}


@pytest.mark.parametrize("privacy", [HASH, DROP], ids=lambda privacy: privacy.author)
def test_nobody_is_left_in_any_row(privacy: Privacy) -> None:
    """Columns, `extra` of each level, names in statistics, and the paths of drift."""
    rows = flat(EVERYWHERE, privacy)

    assert not re.search(f"Muster|{re.escape(ADDRESS)}", repr(rows), re.IGNORECASE)
    assert rows.meta["commit_title"] == "fix: x"
    assert rows.meta["branch"] == "main"
    assert json.loads(rows.meta["extra"])["pull_request_title"] == {"a": "fix: x"}
    assert {item.name: item.value for item in rows.items if item.category == "by_person"} == {"***": 3, "other": 4}


@pytest.mark.parametrize("privacy", [HASH, DROP], ids=lambda privacy: privacy.author)
def test_nobody_is_left_in_a_listing(privacy: Privacy) -> None:
    """Likewise, in what the search call says."""
    entry = {"id": "1", "commit_title": MESSAGE, "author": {"name": "Ann Muster"}, ADDRESS: [MESSAGE], "branch": "main"}

    page = read_page(120, {"scans": [entry]}, privacy)

    assert not re.search(f"Muster|{re.escape(ADDRESS)}", repr(page))
    assert page.listings[0].branch == "main"


def test_kept_people_stay_as_they_came() -> None:
    """Without a word in the settings nothing is hidden."""
    rows = flat(EVERYWHERE, KEEP)

    assert rows.meta["commit_title"] == MESSAGE
    assert json.loads(rows.scan["extra"])["message"] == MESSAGE


def test_the_content_hash_is_that_of_what_is_stored() -> None:
    """Answers that differ in what is hidden alone are the same; under another privacy they are another content."""
    other = json.loads(json.dumps(EVERYWHERE).replace(ADDRESS, "bob@example.com").replace("Ann Muster", "Bob"))

    assert flat(EVERYWHERE, DROP).content_hash == flat(other, DROP).content_hash
    assert len({flat(EVERYWHERE, privacy).content_hash for privacy in (KEEP, HASH, DROP)}) == 3


def test_a_pseudonym_needs_the_key() -> None:
    """The same person has the same one, however it is written; another key gives another."""
    found = pseudonym("Ann@Example.com", KEY)

    assert re.fullmatch("[0-9a-f]{32}", found)
    assert found == pseudonym(" ann@example.com", KEY)
    assert found not in {pseudonym("ann@example.com", key) for key in (b"", key_from("another secret!!"))}
    assert found != pseudonym("bob@example.com", KEY)


def test_no_repr_shows_the_key() -> None:
    """Whoever logs it by mistake tells nothing."""
    assert "author='hash'" in repr(HASH)
    assert "key" not in repr(HASH)


def test_a_quoted_body_names_nobody() -> None:
    """Errors and dead letters are told to anybody, whatever the settings say of people."""
    body = json.dumps({"error": f"no: {ADDRESS}", "message": MESSAGE}).encode()

    assert quoted(body, "").startswith(': {"error": "no: ***", "message": "fix: x')
    assert "Muster" not in quoted(body, "")


# What is forgotten


def left(person: Person, column: str, value: Any) -> Any:
    return person.trace({column: value}).changes.get(column, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ask ann@x.de", "Ask ***"),
        ("<ANN@X.DE>,ann@x.de.", "<***>,***."),
        ("joann@x.de bob+ann@x.de j.ann@x.de ann@x.de.au", "joann@x.de bob+ann@x.de j.ann@x.de ann@x.de.au"),
        ("?mail=ann%40x.de", "?mail=***"),
        ("fix\n\nCo-authored-by: Ann <ann@x.de>\nCc: Bob <b@x.de>", "fix\n\n\nCc: Bob <b@x.de>"),
        (r"\nann@x.de", r"\n***"),
    ],
)
def test_an_address_is_forgotten_as_a_whole(text: str, expected: str) -> None:
    """With the trailers that hold it; those of others stay."""
    assert left(Person("ann@x.de"), "error", text) == expected


@pytest.mark.parametrize(
    ("column", "text", "expected"),
    [
        ("error", "Ask @Ann, or ann-marie or j.ann or ann.m", "Ask @***, or ann-marie or j.ann or ann.m"),
        ("commit_title", "ann@x.de", "ann@x.de"),
        ("commit_author_image_url", "https://github.com/ann.png", "https://github.com/ann.png"),
        ("commit_author_image_url", "https://github.com/ann/x", "https://github.com/***/x"),
        ("commit_author_name", "Ann Muster", "Ann Muster"),
        ("commit_author_name", "Ann", None),
    ],
)
def test_a_user_name_is_forgotten_as_a_word(column: str, text: str, expected: str | None) -> None:
    """Names of people only where they are all of it."""
    assert left(Person("ann"), column, text) == expected


@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hashed"])
def test_all_columns_of_an_author_go_together(hidden: bool) -> None:
    """Those of the other author stay. Other names of a person are told, unless they are pseudonyms."""
    kind: Literal["keep", "hash"] = "hash" if hidden else "keep"
    meta = {
        "commit_author_name": "Ann",
        "commit_author_email": "ann@x.de",
        "commit_author_username": "annm",
        "commit_author_image_url": "https://x.de/7",
        "pull_request_author_username": "bob",
    }
    row = flat({"meta": meta}, Privacy(kind, KEY)).meta

    for name, other in (("Ann@X.de", "annm"), ("ANNM", "ann@x.de")):
        trace = Person(name, pseudonym(name, KEY)).trace({column: row[column] for column in meta})
        assert trace.changes == {column: None for column in meta if column.startswith("commit")}
        assert trace.names == (frozenset() if hidden else {other})


def test_a_person_in_extra_is_forgotten_with_what_belongs_to_them() -> None:
    """What stands beside the address in the same object, under a name that speaks of the same person."""
    extra = {
        "committer_name": "Ann",
        "committer_email": "ann@x.de",
        "author": {"name": "Bob", "email": "b@x.de"},
        "people": [{"name": "Ann", "email": "ann@x.de"}, {"name": "Bob", "email": "b@x.de"}],
        "ann@x.de": 1,
    }

    assert left(Person("ann@x.de"), "extra", extra) == {
        "committer_name": "***",
        "committer_email": "***",
        "author": {"name": "Bob", "email": "b@x.de"},
        "people": [{"name": "***", "email": "***"}, {"name": "Bob", "email": "b@x.de"}],
        "***": 1,
    }
