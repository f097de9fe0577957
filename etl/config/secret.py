"""Secret texts from the environment, or from the file that a variable whose name ends in `_FILE` points to."""

from pathlib import Path

from etl.errors import ConfigError

_FILE_BYTES = 65_536


def read_secret(variable: str, value: str, noun: str) -> str:
    """The secret that an environment variable holds or points to. ConfigError, which names the variable and never its
    value, where that can't be one."""
    secret = (_file_content(variable, value, noun) if variable.endswith("_FILE") else value).strip()
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ConfigError(f"{variable}: a {noun} has no blanks, control characters or characters outside ASCII")
    return secret


def _file_content(variable: str, path: str, noun: str) -> str:
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
