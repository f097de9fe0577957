"""Where the database is, and which forms its URL and its schema may have."""

import re
from dataclasses import dataclass

SCHEMA_CHARACTERS = 63
"""PostgreSQL would cut a longer name."""
_SCHEMA = re.compile(rf"[A-Za-z_][A-Za-z0-9_-]{{0,{SCHEMA_CHARACTERS - 1}}}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the rows are: a URL, and on PostgreSQL the schema there; without one `search_path` decides."""

    url: str
    schema: str = ""


def address_of(place: str | Address) -> Address:
    """Most places are known by their URL alone."""
    return Address(place) if isinstance(place, str) else place


# What SQLAlchemy understands, too. A password may hold anything but `@`.
_DATABASE_URL = re.compile(
    r"sqlite:///.+|"
    r"(?:postgres|postgresql|postgresql\+psycopg|(?:mysql|mariadb)(?:\+pymysql)?)://(?:[^:/@]*(?::[^@]*)?@)?"
    r"(?:\[[^]/@]+\]|[^]\[:/?#@]*)(?::\d{1,5})?(?:/[^?]*)?(?:\?.*)?"
)


def checked_database_url(url: str) -> str:
    """The URL. ValueError, which says what is wrong with it and quotes nothing of it."""
    if url == "sqlite:///:memory:":
        raise ValueError("such a database is gone when the command ends: name a file, e.g. sqlite:///scans.db")
    if url.startswith("sqlite:") and "?" in url:
        raise ValueError("an SQLite URL has no parameters: it ends with the name of the file")
    if not url.isprintable() or not _DATABASE_URL.fullmatch(url):
        raise ValueError(
            "it must be like sqlite:///scans.db or postgresql://user:password@host:5432/name (or mysql:// likewise), "
            "with special characters in the password as %XX"
        )
    return url


def checked_schema(schema: str, url: str) -> str:
    """The schema, if the database at this URL may have one; ValueError, which says why not."""
    if schema and url.startswith("sqlite:"):
        raise ValueError("an SQLite file has no schemas: leave it empty, and name another file in database.url")
    if schema and url.startswith(("mysql", "mariadb")):
        raise ValueError("MySQL and MariaDB have no schemas in a database: leave it empty, and name another database")
    if schema and not _SCHEMA.fullmatch(schema):
        raise ValueError(f"it must be one name of at most {SCHEMA_CHARACTERS} letters, digits, _ and -, e.g. scan_etl")
    return schema
