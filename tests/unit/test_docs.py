"""The documentation names what there is: commands, options, tables, columns, views."""

import ast
import re
from pathlib import Path
from typing import get_args

import click
import pytest

from etl import errors
from etl.cli.main import cli
from etl.database.migrate import dictionary
from etl.telemetry.events import Event
from etl.telemetry.lines import LINES

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
README = PAGES["README.md"]
TABLES = PAGES["docs/tables.md"]


def commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """All commands, those of groups by their full name."""
    found: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found |= commands(command, f"{name} ") if isinstance(command, click.Group) else {prefix + name: command}
    return found


COMMANDS = commands(cli)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_names_every_command(command: str) -> None:
    """A command that isn't in the README doesn't exist for users."""
    assert f"scan-etl {command}" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_a_help_text(command: str) -> None:
    """`--help` explains itself."""
    found = COMMANDS[command]

    assert found.help
    options = [param for param in found.params if isinstance(param, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_command_that_there_is_not(page: str) -> None:
    """Every `scan-etl WORD` in the README is a command, and every one that is code in the docs."""
    before = "" if page == "README.md" else r"(?:^|`|bin/|\$ )"
    named = set(re.findall(rf"{before}scan-etl ([a-z]+)\b", PAGES[page], re.MULTILINE))

    names = {command.split()[0] for command in COMMANDS}
    assert named <= names, named - names


def anchor(heading: str) -> str:
    """What a link calls a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_somewhere(page: str) -> None:
    """Each link within the repository: to a file that is there, and to a heading of it."""
    for target in re.findall(r"\]\((?!\w+:)([^)]+)\)", PAGES[page]):
        path, _, heading = target.partition("#")
        found = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert found.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert heading in map(anchor, headings), target


DICTIONARY = dictionary()
ENTRIES = {**DICTIONARY.tables, **DICTIONARY.views}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_docs_say_what_the_dictionary_says(name: str) -> None:
    """docs/tables.md has a section for each table and view, with a row for each column, word by word."""
    headings = {part.split("`")[1]: part.split("\n")[0] for part in TABLES.split("\n### ")[1:]}
    section = TABLES.split(f"\n### `{name}`")[1].split("\n## ")[0].split("\n### ")[0]
    rows = section.split("| column | meaning | unit | API | NULL |\n|---|---|---|---|---|\n")[1].split("\n\n")[0]

    assert headings[name] == f"`{name}`: {ENTRIES[name].meaning}"
    assert rows.splitlines() == [
        f"| `{column}` | {said.meaning} | {said.unit or ''} | {f'`{said.api}`' if said.api else ''} | "
        f"{'yes' if said.nullable else 'no'} |"
        for column, said in ENTRIES[name].columns.items()
    ]


def test_the_dictionary_is_plain() -> None:
    """Each meaning is there, and fits into a comment of any database and into a table of the docs."""
    sentences = [said.sentence() for entry in ENTRIES.values() for said in entry.columns.values()]

    for sentence in (*sentences, *(entry.meaning for entry in ENTRIES.values())):
        assert re.fullmatch(r"[^\\%|:\n]([^\\%|\n]){2,999}", sentence), sentence


def test_every_event_has_a_log_line() -> None:
    """An event without words would be a KeyError at the worst moment."""
    assert set(LINES) == set(get_args(Event))


def test_the_docs_list_every_event() -> None:
    """docs/logs.md has a row for each: its name, its level, its fields, and when it is logged."""
    rows = PAGES["docs/logs.md"].split("| event | level | fields | when |\n|---|---|---|---|\n")[1].split("\n\n")[0]

    assert rows.splitlines() == [
        f"| `{line.event}` | {line.level} | {', '.join(f'`{name}`' for name in kind.__struct_fields__)} "
        f"| {' '.join((kind.__doc__ or '').split())} |"
        for kind, line in LINES.items()
    ]


ARCHITECTURE = PAGES["docs/architecture.md"]
ROOMS = sorted(path.parent for path in (ROOT / "etl").glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_the_map_shows_every_room_and_its_files(room: Path) -> None:
    """A newcomer finds each file there, and no file that isn't; each room says in one sentence what it is for."""
    line = re.search(rf"^ etl/{room.name} (.*?)(?=^ (?:etl/|─)|^```|^$)", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))

    assert docstring
    assert line is not None
    if room.name != "sandbox":
        question, _, shown = line[1].strip().partition("?")
        assert docstring.startswith(question.split(",")[0])
        files = {path.stem for path in room.glob("*.py")} - {"__init__"}
        assert files - set(re.findall(r"\b[a-z_]+\b", shown)) == set()
        assert set(re.findall(r"\b[a-z]+_[a-z_]+\b", shown)) - files == set()


def test_the_map_shows_every_error() -> None:
    """With the situation in which it is raised."""
    ours = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}

    assert {name for name in ours if f"`{name}`" not in ARCHITECTURE} == set()
