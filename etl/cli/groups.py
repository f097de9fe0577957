"""Groups of commands: their help is whole, and what they don't need is imported late."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

LONGEST_SUMMARY = 1_000
"""Characters: no summary is cut."""
INTERRUPTED_EXIT = 130


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Around imports: they take half a second, in which somebody may press Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED_EXIT) from None


class WholeGroup(click.Group):
    """A group whose help has the whole summary of each command."""

    def sections(self, ctx: click.Context) -> Mapping[str, Mapping[str, str]]:
        """The commands' summaries, by heading."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        return {
            "Commands": {name: found.get_short_help_str(LONGEST_SUMMARY) for name, found in commands.items() if found}
        }

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, section by section."""
        for heading, summaries in self.sections(ctx).items():
            with formatter.section(heading):
                formatter.write_dl(list(summaries.items()))


class Later(NamedTuple):
    """A command that is imported when it is called: `module:name`, and its summary, which needs no import."""

    place: str
    summary: str


class LazyGroup(WholeGroup):
    """A group whose commands are imported when they are called. They are told by section, in the order of use."""

    def __init__(self, *args: Any, later: Mapping[str, Mapping[str, Later]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = later
        self._later = {name: one for commands in later.values() for name, one in commands.items()}

    def sections(self, ctx: click.Context) -> Mapping[str, Mapping[str, str]]:  # noqa: ARG002 - click's
        """The commands' summaries, by heading."""
        return {
            heading: {name: one.summary for name, one in commands.items()}
            for heading, commands in self._sections.items()
        }

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """All names, sorted."""
        return sorted(self._later)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """The command of this name, imported now."""
        if cmd_name not in self._later:
            return None
        module, _, name = self._later[cmd_name].place.partition(":")
        with ending_quietly():
            command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called. What is none gets the names that are most alike, of those not imported, too."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(error.command_name, possibilities=self._later, ctx=ctx) from error

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names and options that begin so. A group of click's would import all of its commands for that."""
        names = [
            CompletionItem(name, help=one.summary) for name, one in self._later.items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)
