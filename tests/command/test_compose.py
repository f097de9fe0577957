"""deploy/compose.yml holds no secret, and starts things in an order that works."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from etl import __version__

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if name != "postgres"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_secret_is_a_file(name: str) -> None:
    """Each one that a service reads is mounted there, and comes from a file on the machine; no other is."""
    environment = SERVICES[name]["environment"]
    read = {value for variable, value in environment.items() if variable.endswith("_FILE")}

    assert read == {f"/run/secrets/{secret}" for secret in SERVICES[name]["secrets"]}
    assert {secret for service in SERVICES.values() for secret in service["secrets"]} == COMPOSE["secrets"].keys()
    assert all(secret.keys() == {"file"} for secret in COMPOSE["secrets"].values())


def test_no_variable_holds_a_secret() -> None:
    """Neither a token nor a password, nor an address with one."""
    variables = {name: value for service in SERVICES.values() for name, value in service["environment"].items()}
    suspects = re.compile("TOKEN|PASSWORD|KEY|URL|SECRET")

    assert [name for name in variables if suspects.search(name) and not name.endswith("_FILE")] == []
    assert "://" not in "".join(line for line in TEXT.splitlines() if "127.0.0.1" not in line)


def test_each_waits_for_what_it_needs() -> None:
    """The tables are made on a database that answers, before anybody needs them."""
    waits = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    made = {"upgrade": {"condition": "service_completed_successfully"}}

    assert waits == {
        "postgres": {},
        "upgrade": {"postgres": {"condition": "service_healthy"}},
        "worker": made,
        "sync": made,
    }


def test_what_stays_up_says_how_it_is() -> None:
    """The worker is asked where it answers; what ends by itself isn't started again."""
    port = SERVICES["worker"]["environment"]["SCAN_ETL_OBSERVE__METRICS_PORT"]
    stays = {name for name, service in SERVICES.items() if service["restart"] == "unless-stopped"}

    assert stays == {name for name, service in SERVICES.items() if "healthcheck" in service} == {"postgres", "worker"}
    assert f"http://127.0.0.1:{port}/healthz" in SERVICES["worker"]["healthcheck"]["test"][-1]
    assert SERVICES["sync"]["profiles"] == ["sync"]


@pytest.mark.parametrize("name", OURS)
def test_our_containers_may_do_nothing(name: str) -> None:
    """They write nothing to their file system and have no capability, as in deploy/kubernetes."""
    service = OURS[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile"}


def test_images_are_of_this_version() -> None:
    """In every file of deploy/ and in the guide."""
    files = [ROOT / "docs" / "deploy.md", *(path for path in (ROOT / "deploy").rglob("*") if path.suffix != ".pyc")]
    named = [tag for path in files if path.is_file() for tag in re.findall(rb"scan-etl:(\d[\w.]*)", path.read_bytes())]

    assert len(named) >= 5
    assert {*named} == {__version__.encode()}
