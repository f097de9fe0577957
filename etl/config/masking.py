"""Settings as they may be shown: without the secrets in them."""

import re
from urllib.parse import unquote, urlsplit

from etl.config.secret import MASK

SECRET_NAME = re.compile("pass|pwd|secret|token", re.IGNORECASE)


def mask_url(url: str) -> str:
    """The URL with `***` for its password, and for what looks like one in its query.

    Of a broken URL, all that might be a password is masked, at the price of some of the rest.
    """
    scheme, slashes, rest = url.partition("://")
    if not slashes or not re.fullmatch(r"[a-z0-9+.-]*", scheme, re.IGNORECASE):
        if re.search(r"\S\s*=|\s-", url):
            return MASK  # no URL, but a command or names and values
        scheme, slashes, rest = "", "", url
    rest = re.sub(r"(?<=[?&])([^=&]+)=([^&]*)", _masked_parameter, rest)
    if scheme != "sqlite" or not rest.startswith("/"):
        user, at, place = rest.rpartition("@")
        if at:
            rest = re.sub(r":.*", ":***", user, count=1, flags=re.DOTALL) + at + place
        else:  # a colon is followed by a port, or the `@` is missing
            rest = re.sub(r"^([^\[:/?]*):(?!\d+(?:[/?]|$)).*", r"\1:***", rest, flags=re.DOTALL)
    return scheme + slashes + rest


def mask_database_url(url: str) -> str:
    """Likewise. What has no colon is no URL, and may be the password alone."""
    return mask_url(url) if ":" in url else MASK


def _masked_parameter(match: re.Match[str]) -> str:
    if not SECRET_NAME.search(unquote(match[1])):
        return match[0]
    return f"{match[1]}=***" + "@" * ("@" in match[2])  # the `@` may end a password that began before the name


def mask_webhook(url: str) -> str:
    """The URL of a chat tool as far as its host: the rest is a secret."""
    try:
        host = urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    return f"{url.partition('://')[0]}://{host}/***" if host and "://" in url else "***" * bool(url)


def mask_command(command: str) -> str:
    """A command line as far as its program: what follows may be a secret."""
    program, _, rest = command.partition(" ")
    return f"{program} ***" if rest else program
