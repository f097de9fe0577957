"""URLs in the settings: which forms they may have, where the database is by them, and none that shows its password."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

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
    """The URL that a file holds. ConfigError where it can't be read or is empty."""
    return file_content(URL_FILE, file, "URL").strip()


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


SECRET_NAME = re.compile("pass|pwd|secret|token", re.IGNORECASE)


def mask_url(url: str) -> str:
    """The URL with `***` for its password, and for what looks like one in its query.

    Of a broken URL, all that might be a password is masked, at the price of some of the rest.
    """
    scheme, slashes, rest = url.partition("://")
    if not re.fullmatch(r"[a-z0-9+.-]*", scheme, re.IGNORECASE):
        scheme, slashes, rest = "", "", url
    rest = re.sub(r"(?<=[?&])([^=&]+)=([^&]*)", _masked_parameter, rest)
    if scheme != "sqlite" or not rest.startswith("/"):
        user, at, place = rest.rpartition("@")
        if at:
            rest = re.sub(r":.*", ":***", user, count=1, flags=re.DOTALL) + at + place
        else:  # a colon is followed by a port, or the `@` is missing
            rest = re.sub(r"^([^\[:/?]*):(?!\d+(?:[/?]|$)).*", r"\1:***", rest, flags=re.DOTALL)
    return scheme + slashes + rest


def _masked_parameter(match: re.Match[str]) -> str:
    if not SECRET_NAME.search(unquote(match[1])):
        return match[0]
    return f"{match[1]}=***" + "@" * ("@" in match[2])  # the `@` may end a password that began before the name
