"""What becomes of people, by the settings: what a run asks before it begins."""

from etl.config.privacy_key import HOW_TO
from etl.config.settings import Settings
from etl.errors import ConfigError
from etl.transform.privacy import Privacy, key_from


def privacy_of(settings: Settings) -> Privacy:
    """The privacy that the settings ask for. ConfigError where people are to be hashed and there is no key."""
    secret = settings.privacy_key.get_secret_value()
    if settings.privacy.author == "hash" and not secret:
        raise ConfigError(f"privacy.author is hash, and there is no key: {HOW_TO}")
    return Privacy(settings.privacy.author, key_from(secret) if secret else b"")
