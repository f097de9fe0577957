"""The secret from which pseudonyms of people are made. It comes from the environment alone, as tokens do."""

from collections.abc import Mapping

from etl.config.secret import read_secret
from etl.errors import ConfigError

PRIVACY_KEY_VARIABLES = ("SCAN_ETL_PRIVACY_KEY", "SCAN_ETL_PRIVACY_KEY_FILE")
LEAST_CHARACTERS = 16
HOW_TO = f"set {PRIVACY_KEY_VARIABLES[0]} or {PRIVACY_KEY_VARIABLES[1]}; `openssl rand -hex 32` makes a key"


def load_privacy_key(environ: Mapping[str, str]) -> tuple[str, str]:
    """The variable that the key came from, and the key; two empty texts if there is none. ConfigError, without the
    key, for one that can't be used."""
    given = [name for name in PRIVACY_KEY_VARIABLES if environ.get(name, "").strip()]
    if not given:
        return "", ""
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are both set: keep one")
    key = read_secret(given[0], environ[given[0]], "key")
    if len(key) < LEAST_CHARACTERS:
        raise ConfigError(f"{given[0]}: the key is shorter than {LEAST_CHARACTERS} characters: {HOW_TO}")
    return given[0], key
