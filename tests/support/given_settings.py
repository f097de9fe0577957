"""Settings as tests give them: a file, variables, flags."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from etl.config.settings import Settings, load_settings
from etl.errors import ConfigError

NOWHERE = Path("/folder/that/is/not/there")
SECRET = "hunter2"


def load(
    *,
    config_file: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    directory: Path = NOWHERE,
) -> Settings:
    return load_settings(config_file=config_file, flags=flags or {}, environ=environ or {}, directory=directory)


def problems(**sources: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**sources)
    return str(caught.value).splitlines()


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
