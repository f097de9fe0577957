"""Secret texts: read from the environment, or from the file that a variable whose name ends in `_FILE` points to; and
masked wherever somebody else quotes them."""

import html
import re
from base64 import b64encode
from functools import lru_cache
from pathlib import Path

from etl.errors import ConfigError

_FILE_BYTES = 65_536
MASK = "***"
LONGEST_DRESS = 6
"""So many characters at most stand for one of a secret, in what is usual: `\\u002f`."""
_LEAST_BASE64 = 4


def read_secret(variable: str, value: str, noun: str) -> str:
    """The secret that an environment variable holds or points to. ConfigError, which names the variable and never its
    value, where that can't be one."""
    secret = (file_content(variable, value, noun) if variable.endswith("_FILE") else value).strip()
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ConfigError(f"{variable}: a {noun} has no blanks, control characters or characters outside ASCII")
    return secret


def file_content(variable: str, path: str, noun: str) -> str:
    """What the file holds that a variable or a setting points to. ConfigError, which shows no path."""
    # The path isn't shown: it may be a secret that somebody put there by mistake.
    try:
        with Path(path).open("rb") as file:
            content = file.read(_FILE_BYTES).decode("utf-8-sig", errors="replace")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it isn't a path"
        raise ConfigError(
            f"{variable}: the file can't be read ({why}): "
            f"give the path of a file that may be read, not the {noun} itself"
        ) from error
    if not content.strip():
        raise ConfigError(f"{variable}: the file is empty: write the {noun} into it")
    return content


def masked(text: str, *secrets: str) -> str:
    """The text with `***` for each secret, plain or in any usual dress: percent-encoded, JSON-escaped, or in base64,
    there also as a piece of something longer such as `user:password`."""
    for secret in filter(None, secrets):
        text = _dresses(secret).sub(MASK, text)
    return text


def without_cut_secret(piece: bytes, *secrets: str) -> bytes:
    """A piece of something longer, without its end: there may be the beginning of a secret, which nobody would know for
    one."""
    return piece[: max(0, len(piece) - LONGEST_DRESS * max(map(len, secrets), default=0))]


@lru_cache(maxsize=1_000)
def _dresses(secret: str) -> re.Pattern[str]:
    plain = "".join(map(_forms, secret))
    encoded = [text for skipped in range(3) if (text := _base64(secret.encode(), skipped))]
    # Most places are passed by at their first character.
    firsts = re.escape("".join({text[0] for text in (secret, *encoded)}) + "%\\&-_")
    return re.compile(
        f"(?=[{firsts}])(?:{'|'.join([plain, *(''.join(map(_base64_forms, text)) for text in encoded)])})"
    )


def _forms(character: str) -> str:
    """A pattern for one character, as texts, URLs, JSON and HTML write it, JSON and URLs also once more."""
    literal = re.escape(character)
    percent = "".join(f"%(?:25)*{_hexadecimal(byte, 2)}" for byte in character.encode())
    escaped = html.escape(character)
    entity = f"|{re.escape(escaped)}" if escaped != character else ""
    return rf"(?:{literal}|{percent}|\\+(?:{literal}|u{_hexadecimal(ord(character), 4)}){entity})"


def _hexadecimal(number: int, digits: int) -> str:
    """A pattern for a number of so many digits, whose letters may be small or large."""
    return "".join(digit if digit.isdecimal() else f"[{digit}{digit.upper()}]" for digit in f"{number:0{digits}x}")


def _base64_forms(character: str) -> str:
    return f"(?:{'|'.join(map(_forms, {'+': '+-', '/': '/_'}.get(character, character)))})"


def _base64(secret: bytes, skipped: int) -> str:
    """What is the same in the base64 of all texts that hold the secret behind so many bytes, beside a multiple of 3.
    Empty for what is too short to be known again."""
    first, end = -(-8 * skipped // 6), 8 * (skipped + len(secret)) // 6
    text = b64encode(bytes(skipped) + secret).decode()[first:end]
    return text if len(text) >= _LEAST_BASE64 else ""
