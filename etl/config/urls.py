"""URLs in the settings: which forms they may have, where the database is by them, and none that shows its password."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from etl.config.proxies import is_loopback
from etl.config.secret import file_content
from etl.errors import ConfigError

URL_FILE = "database.url_file"
SCHEMA_CHARACTERS = 63
"""PostgreSQL would cut a longer name."""
_SCHEMA = re.compile(rf"[A-Za-z_][A-Za-z0-9_-]{{0,{SCHEMA_CHARACTERS - 1}}}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the rows are: a URL, and on PostgreSQL the schema there; without one `search_path` decides.

    `url` is what `url_file`, where there is one, held at the start.
    """

    url: str
    schema: str = ""
    url_file: str = ""

    def current_url(self) -> str:
        """The URL for a new connection: the password in the file may be another one by now. ConfigError where the file
        has no usable URL."""
        if not self.url_file:
            return self.url
        try:
            return checked_database_url(url_in(self.url_file))
        except ValueError as error:
            raise ConfigError(f"{URL_FILE}: what the file holds is no usable URL; {error}") from error


def url_in(file: str) -> str:
    """The URL that a file holds. ConfigError where it can't be read, or holds something else, maybe a password."""
    url = file_content(URL_FILE, file, "URL").strip()
    if ":" not in url:
        raise ConfigError(f"{URL_FILE}: the file holds no URL, such as postgresql://user:password@host:5432/name")
    return url


def address_of(place: str | Address) -> Address:
    """Most places are known by their URL alone."""
    return Address(place) if isinstance(place, str) else place


_USER = r"(?:[^:/?#@]*(?::[^@]*)?@)?+"
"""A password may hold anything but `@`."""
_HOST = r"(?:\[[^]/@]+\]|[^]\[:/?#@]*)"
_SERVER = rf"(?:postgres|postgresql|postgresql\+psycopg|(?:mysql|mariadb)(?:\+pymysql)?)://{_USER}{_HOST}"
_PORT = r"0*(?:[1-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])"
# What SQLAlchemy understands, too.
_HOSTS = rf"postgres[^:]*://{_USER}[^/?#@]+,[^/?#@]+"
"""Several hosts, as libpq has them."""
_DATABASE_URL = re.compile(rf"sqlite:///.+|(?:{_SERVER}(?::{_PORT})?|{_HOSTS})(?:/[^?]*)?(?:\?.*)?")
_POSTGRESQL, _MYSQL = (rf"(?:{names})[^:]*://{_USER}" for names in ("postgres", "mysql|mariadb"))
_NAMED = r"[^?]*\?(?:.*&)?(?i:{})="
_WRONG_FORMS = {
    r".*[\0-\x1f\x7f]": "there is a line break or another control character in it",
    r"\s|.*\s$": "there is a blank at its beginning or its end",
    r"['\"]|.*['\"]$": "leave out the quotes around it",
    r"jdbc:": "leave out jdbc:, and write user and password before the host",
    r"\w+\s*=(?!\w*:/)": "these are names and values, and no URL",
    r"\w+\s*=": "leave out what stands before the URL",
    r"(?:psql|mysql|mariadb)\s": "that is a command, and no URL",
    r"(?:sqlite|postgres\w*|mysql|mariadb)\+(?!(?:psycopg|pymysql):)": "leave out the + and the driver behind it",
    r"(?=[^:]*[A-Z])(?i:sqlite|postgres|mysql|mariadb)\w*[:+]": "the kind of database is written in small letters",
    r"(?!(?:sqlite|postgres|postgresql|mysql|mariadb)[:+])[^/]*:": "it begins with no kind of database that is known",
    r"sqlite:(?!///.)": "three slashes stand before the name of a file, and four before its whole path",
    rf"(?!sqlite)[\w+]+://{_USER}[^@]*@": "an @ in a user, a password or a parameter is written %40",
    rf"{_SERVER}:(?!{_PORT}(?:[,/?]|$))": "behind the host and a colon stands the port, 65535 at most",
    rf"{_POSTGRESQL}[^/?]*%2[fF]": "a socket's folder is a parameter: postgresql://user@/name?host=/var/run",
    rf"{_MYSQL}[^/?]*%2[fF]": "a socket is a parameter: mysql://user@/name?unix_socket=/run/mysqld.sock",
    _POSTGRESQL + _NAMED.format("schema|currentschema|search_?path"): "the schema is a setting, [database] schema",
    _POSTGRESQL + _NAMED.format("ssl|usessl|tls"): "TLS is asked for by sslmode=require, or verify-full",
    _MYSQL + _NAMED.format("ssl|usessl|tls|ssl[_-]?mode|sslaccept"): "TLS is asked for by ssl_ca=FILE, whom to trust",
    rf"{_MYSQL}[^/?]*/?(?:$|\?(?!.*(?:db|database|read_default_file)=))": "the name of the database is missing",
}
"""What is wrong with URLs as people paste them, by how they begin: the first one counts."""


def checked_database_url(url: str) -> str:
    """The URL. ValueError, which says what is wrong with it and quotes nothing of it."""
    if url == "sqlite:///:memory:":
        raise ValueError("such a database is gone when the command ends: name a file, e.g. sqlite:///scans.db")
    if url.startswith("sqlite:") and "?" in url:
        raise ValueError("an SQLite URL has no parameters: it ends with the name of the file")
    wrong = next((sentence for form, sentence in _WRONG_FORMS.items() if re.match(form, url, re.DOTALL)), None)
    if wrong or not url.isprintable() or not _DATABASE_URL.fullmatch(url):
        raise ValueError(
            f"{wrong}; "
            * bool(wrong)
            + "it must be like sqlite:///scans.db or postgresql://user:password@host:5432/name (or mysql:// likewise), "
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


def checked_base_url(url: str) -> str:
    """The URL without a slash at its end. ValueError, which says what is wrong with it."""
    if not url.isascii() or not url.isprintable() or set(url) & set(" ?#@\\"):
        raise ValueError("it must be a URL without user, query, fragment and blanks")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError("it must be a URL such as https://semgrep.dev") from error
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host or ""))
    if not is_safe or not host:
        raise ValueError("it must begin with https:// and a host; http:// is for this machine only, e.g. 127.0.0.1")
    return url.rstrip("/")
