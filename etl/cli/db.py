"""The command `db`: bring the tables up to date, look whether they are."""

import math
import sys
from contextlib import closing
from dataclasses import asdict

import click

from etl.app.refresh import refresh
from etl.cli.groups import WholeGroup
from etl.cli.options import as_json, common, settings_of, wants_json
from etl.config.urls import Address
from etl.database import migrate
from etl.database.connection import Database
from etl.database.dictionary import ColumnEntry
from etl.database.engine import display_url
from etl.database.rights import Kind
from etl.database.schema import HEAD
from etl.store.summaries import mark_everything
from etl.telemetry.reporter import print_result, print_table


@click.group("db", cls=WholeGroup)
def db_group() -> None:
    """The tables: upgrade them, check their version, grant rights."""


@db_group.command("upgrade")
@as_json
@common
@click.pass_context
def db_upgrade(ctx: click.Context) -> None:
    """Create the tables, or bring them to the newest version."""
    address = settings_of(ctx).database.address
    migrate.upgrade(address)
    _refresh(address)
    _emit(ctx, f"{display_url(address.url)} is at {HEAD}", address.url, HEAD)


@db_group.command("refresh")
@click.option("--all", "everything", is_flag=True, help="All days, whatever program has changed them.")
@as_json
@common
@click.pass_context
def db_refresh(ctx: click.Context, /, everything: bool) -> None:
    """Count anew what dashboards read, where it is behind. Runs do so by themselves."""
    address = settings_of(ctx).database.address
    migrate.check(address)
    count = _refresh(address, everything=everything)
    if wants_json(ctx):
        print_result({"database": display_url(address.url), "days": count}, as_json=True)
    else:
        click.echo(f"{count:,} days counted")


def _refresh(address: Address, *, everything: bool = False) -> int:
    """Count what is marked, however long it takes; on a terminal it is seen how far it is."""
    with closing(Database(address)) as database:
        if everything:
            database.run_here(mark_everything)
        is_seen = sys.stderr.isatty()
        count = refresh(
            database,
            seconds=math.inf,
            say=lambda days: click.echo(f"\r{days:,} days counted", nl=False, err=True) if is_seen else None,
        )
        if is_seen and count:
            click.echo(err=True)
        return count


@db_group.command("downgrade")
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
@common
@click.pass_context
def db_downgrade(ctx: click.Context, revision: str, yes: bool) -> None:
    """Take the tables back to REVISION (`base`: none at all). What the dropped ones held is lost."""
    address = settings_of(ctx).database.address
    if not yes:
        click.confirm(f"Drop what came after {revision} in {display_url(address.url)}, with its data?", abort=True)
    migrate.downgrade(address, revision)
    click.echo(f"{display_url(address.url)} is at {revision}")


@db_group.command("check")
@as_json
@common
@click.pass_context
def db_check(ctx: click.Context) -> None:
    """Exit 0 if the tables are what this version needs, else 5."""
    address = settings_of(ctx).database.address
    migrate.check(address)
    _emit(ctx, f"{display_url(address.url)} is at {HEAD}, as it should be", address.url, HEAD)


@db_group.command("current")
@as_json
@common
@click.pass_context
def db_current(ctx: click.Context) -> None:
    """Print the revision that the database is at, or `none`."""
    address = settings_of(ctx).database.address
    revision = migrate.current(address)
    _emit(ctx, revision or "none", address.url, revision)


@db_group.command("sql")
@common
@click.pass_context
def db_sql(ctx: click.Context) -> None:
    """Print the SQL of all migrations for this kind of database, without touching it."""
    click.echo(migrate.upgrade_sql(settings_of(ctx).database.address), nl=False)


@db_group.command("grant")
@click.argument("kind", type=click.Choice(["writer", "reader"]))
@click.argument("role")
@click.option("--sql", "only_say", is_flag=True, help="Print the SQL, and change nothing.")
@as_json
@common
@click.pass_context
def db_grant(ctx: click.Context, kind: Kind, role: str, only_say: bool) -> None:
    """Give ROLE the rights of a writer (to run) or of a reader (dashboards, `status`), as the tables' owner.

    ROLE is there already; on MariaDB and MySQL it may be NAME@HOST. Run it again after an upgrade, for new tables.
    """
    address = settings_of(ctx).database.address
    statements = migrate.grant_rights(address, kind, role, only_say=only_say)
    if wants_json(ctx):
        said = {"database": display_url(address.url), "role": role, "rights": kind, "sql": statements}
        print_result(said, as_json=True)
    elif only_say:
        click.echo("\n".join(f"{statement};" for statement in statements))
    else:
        click.echo(f"{role} is a {kind} of {display_url(address.url)} now")


@db_group.command("dictionary")
@as_json
@common
@click.pass_context
def db_dictionary(ctx: click.Context) -> None:
    """Print what each table, view and column means: its type and unit, its path in the API, whether it may be NULL."""
    found = migrate.dictionary()
    if wants_json(ctx):
        print_result(asdict(found), as_json=True)
        return
    for name, entry in (*found.tables.items(), *found.views.items()):
        print_table(f"{name}: {entry.meaning}", [_row(column, said) for column, said in entry.columns.items()])


def _row(column: str, said: ColumnEntry) -> dict[str, str | None]:
    null = "yes" if said.nullable else "no"
    return {
        "column": column,
        "type": said.type,
        "meaning": said.meaning,
        "unit": said.unit,
        "API": said.api,
        "NULL": null,
    }


def _emit(ctx: click.Context, sentence: str, url: str, revision: str | None) -> None:
    """The sentence on stdout, or with --json where the database is and which revision it is at."""
    if wants_json(ctx):
        print_result({"database": display_url(url), "revision": revision}, as_json=True)
    else:
        click.echo(sentence)
