"""The file of the settings: which one is read, one to begin with, its schema. And the files for those who start it."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from command import Command

from etl.config.settings import SECTIONS, Settings

ROOT = Path(__file__).parents[2]


def test_a_file_to_begin_with_changes_nothing(cli: Command) -> None:
    """It has every setting and is the owner's alone; a second time it is let be."""
    written, shown = cli("config", "init"), cli("config", "show", "--json").json()
    path = cli.folder / "config.toml"
    path.write_text(path.read_text() + "# mine\n")
    again, other = cli("config", "init"), cli("config", "init", "other.toml")

    assert (written.exit_code, other.exit_code, again.exit_code) == (0, 0, 2)
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(path) in written.stdout
    assert shown["file"] == str(path)
    assert {row["from"] for row in shown["settings"]} == {"config.toml"}
    assert f"{path} is there already" in again.stderr
    assert path.read_text().endswith("# mine\n")
    assert (cli.folder / "other.toml").exists()


def test_a_file_that_cannot_be_written_is_named(cli: Command) -> None:
    """By its whole path."""
    outcome = cli("config", "init", "nowhere/config.toml")

    assert outcome.exit_code == 2
    assert f"{cli.folder}/nowhere/config.toml can't be written: No such file" in outcome.stderr


def test_the_environment_may_name_the_file(cli: Command) -> None:
    """A flag names another one; the whole path is shown."""
    for number, name in enumerate(("config.toml", "env.toml", "flag.toml"), 1):
        (cli.folder / name).write_text(f"[api]\nrate = {number}.0\n")

    def rate(*options: str, **variables: str) -> tuple[Any, str]:
        shown = cli("config", "show", *options, "--json", environment=variables).json()
        [row] = [row for row in shown["settings"] if row["setting"] == "api.rate"]
        return row["value"], shown["file"]

    folder = str(cli.folder)
    assert rate() == (1.0, f"{folder}/config.toml")
    assert rate(SCAN_ETL_CONFIG="env.toml") == (2.0, f"{folder}/env.toml")
    assert rate("--config", "flag.toml", SCAN_ETL_CONFIG="env.toml") == (3.0, f"{folder}/flag.toml")


@pytest.mark.parametrize("variable", ["", "missing.toml"])
def test_without_a_file_it_is_said_where_it_would_be(cli: Command, variable: str) -> None:
    """One that is named has to be there."""
    shown = cli("config", "show", environment={"SCAN_ETL_CONFIG": variable})

    if variable:
        assert shown.exit_code == 2
        assert "missing.toml is not there" in shown.stderr
    else:
        assert f"File: none; {cli.folder}/config.toml would be read" in shown.stdout


def test_the_schema_knows_each_setting(cli: Command) -> None:
    """With its type, its bounds and what it means, and no other; the keys that no file may hold aren't in it."""
    schema = cli("config", "schema").json()
    cli("config", "init")
    example = tomllib.loads((cli.folder / "config.toml").read_text())

    assert list(schema["properties"]) == SECTIONS == list(example)
    assert schema["additionalProperties"] is False
    for section in SECTIONS:
        definition = schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]
        assert definition["additionalProperties"] is False
        fields = type(getattr(Settings(), section)).model_fields
        assert list(definition["properties"]) == [field.alias or name for name, field in fields.items()]
        assert all(said["description"] for said in definition["properties"].values())
    rate = schema["$defs"]["ApiSettings"]["properties"]["rate"]
    assert (rate["type"], rate["exclusiveMinimum"], rate["default"]) == ("number", 0, 20.0)


def test_the_files_for_cron_and_others_come_with_their_guide(cli: Command) -> None:
    """As they are in a checkout, but for what Python has compiled; what is there stays."""
    written, again, nowhere = (cli("config", "files", folder) for folder in ("mine", "mine", "nowhere/mine"))
    found = {path.relative_to(cli.folder / "mine"): path for path in (cli.folder / "mine").rglob("*") if path.is_file()}
    shipped = {
        path.relative_to(ROOT): path
        for name in ("deploy", "docs")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }

    assert (written.exit_code, again.exit_code, nowhere.exit_code) == (0, 2, 2)
    assert found.keys() == shipped.keys()
    assert all(path.read_bytes() == shipped[name].read_bytes() for name, path in found.items())
    assert f"{cli.folder}/mine has them: begin with docs/deploy.md" in written.stdout
    assert f"{cli.folder}/mine is there already" in again.stderr
    assert f"{cli.folder}/nowhere/mine can't be written: No such file" in nowhere.stderr
