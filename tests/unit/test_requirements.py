"""The pinned requirement files are what pyproject.toml asks for."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(name: str) -> dict[str, str]:
    """The versions in a requirement file, by package. `uv pip compile` writes one pin, then its hashes."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    found = [line.removesuffix("\\").split(";")[0].strip() for line in lines if not line.startswith(" ")]
    return dict(pin.split("==") for pin in found)


def asked(name: str) -> Iterator[Requirement]:
    """What a requirement file is made from."""
    groups = project()["dependency-groups"]
    texts = {
        "run": project()["project"]["dependencies"],
        "build": groups["build"],
        "dbt": groups["dbt"],
        "dev": [*groups["build"], *(text for text in groups["dev"] if isinstance(text, str))],
        "release": groups["release"],
    }[name]
    return map(Requirement, texts)


@pytest.mark.parametrize("name", ["run", "build", "dbt", "dev", "release"])
def test_pins_meet_bounds(name: str) -> None:
    """Each dependency has a pin within its bounds; where this fails, run `make lock`."""
    versions = pins(name)
    missed = [
        str(wanted)
        for wanted in asked(name)
        if not wanted.specifier.contains(versions.get(canonicalize_name(wanted.name), "0"))
    ]

    assert missed == []


@pytest.mark.parametrize("name", ["run", "build"])
def test_one_environment_serves_all(name: str) -> None:
    """The smaller files pin the versions of the large one, so that they go into one environment."""
    assert pins(name).items() <= pins("dev").items()


def test_every_dependency_has_a_lower_bound() -> None:
    """Without one, the leg with the lowest versions would test against the first release ever made."""
    extras = project()["project"].get("optional-dependencies", {}).values()
    wanted = [
        *asked("run"),
        *asked("dev"),
        *asked("release"),
        *(Requirement(text) for extra in extras for text in extra),
    ]
    unbound = [str(one) for one in wanted if not any(part.operator == ">=" for part in one.specifier)]

    assert unbound == []
