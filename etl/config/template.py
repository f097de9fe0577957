"""The settings as a file to be written, and as a schema for editors: both from the example, which explains each."""

import re
from typing import Any

from etl.config.settings import SECTIONS, Settings
from etl.config.shipped import shipped

EXAMPLE = "config.example.toml"


def template() -> str:
    """A file with every setting, its default and what it means."""
    return shipped(EXAMPLE).read_text(encoding="utf-8")


def schema() -> dict[str, Any]:
    """A JSON schema of the file."""
    full = Settings.model_json_schema()
    meanings = _meanings()
    for section in SECTIONS:
        definition = full["$defs"][full["properties"][section]["$ref"].rpartition("/")[2]]
        for key, said in definition["properties"].items():
            said.pop("title", None)
            said["description"] = meanings[f"{section}.{key}"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of scan-etl",
        "type": "object",
        "additionalProperties": False,
        "properties": {section: full["properties"][section] for section in SECTIONS},
        "$defs": full["$defs"],
    }


def _meanings() -> dict[str, str]:
    """What the example's comments say, by key."""
    found, section = {}, ""
    for line in template().splitlines():
        if head := re.fullmatch(r"\[(\w+)\]", line):
            section = head[1]
        elif said := re.fullmatch(r"(\w+) = .*? # (.*)", line):
            found[f"{section}.{said[1]}"] = said[2]
    return found
