"""The command `forget`: a person is removed from what is stored."""

import math
import re
from contextlib import closing
from typing import Any

import click

from etl.app.intake import open_database
from etl.app.privacy import privacy_of
from etl.app.refresh import refresh
from etl.cli.options import as_json, assent, common, confirm, settings_of, wants_json
from etl.database.engine import display_url
from etl.store.forget import Forgotten, forget
from etl.telemetry.reporter import print_result, print_table
from etl.transform.person import Person
from etl.transform.privacy import pseudonym


@click.command("forget")
@click.option("--email", metavar="ADDRESS", help="The person with this mail address.")
@click.option("--username", metavar="NAME", help="The person with this user name.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@assent
@as_json
@common
@click.pass_context
def forget_command(ctx: click.Context, /, email: str | None, username: str | None, dry_run: bool, yes: bool) -> None:
    """Remove a person from all stored data, by mail address or user name.

    Workers may go on meanwhile. What was interrupted is done by the same command again.
    """
    name, settings = _name(email, username), settings_of(ctx)
    key = privacy_of(settings).key
    person = Person(name, pseudonym(name, key) if key else "")
    with closing(open_database(settings.database.address, create=False, reads_only=dry_run)) as opened:
        if not dry_run:
            confirm(f"Remove {name} from {display_url(opened.url)} for good?", yes)
        found = forget(opened, person, dry_run=dry_run)
        if not dry_run:
            refresh(opened, seconds=math.inf)
    _show(found, dry_run, as_json=wants_json(ctx))


def _name(email: str | None, username: str | None) -> str:
    given = [name.strip() for name in (email, username) if name is not None]
    if len(given) != 1:
        raise click.UsageError("say whom to forget: --email ADDRESS or --username NAME, one of the two")
    if email is not None and not re.fullmatch(r'[^\s@"\\]+@[^\s@"\\]+', given[0]):
        raise click.UsageError("--email must be a mail address, such as ann@example.com")
    if not given[0] or (email is None and "@" in given[0]) or len(given[0].split()) != 1:
        raise click.UsageError("--username must be a name without blanks and without @; an address is for --email")
    return given[0]


def _show(found: Forgotten, dry_run: bool, *, as_json: bool) -> None:
    names = sorted(found.names)
    if as_json:
        result: dict[str, Any] = {"dry_run": dry_run, "changed": found.changed, "other_names": names}
        print_result(result, as_json=True)
        return
    title = "Would change" if dry_run else "Changed"
    print_table(title, [{"table": table, "rows": count} for table, count in found.changed.items()])
    if names:
        click.echo(f"Beside this name stood others, to be forgotten by themselves: {', '.join(names)}")
