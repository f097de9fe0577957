"""The command `db`: bring the tables up to date, look whether they are."""

import click

from etl import migrate
from etl.engine import place
from etl.options import common, settings_of
from etl.schema import HEAD


@click.group("db")
def db_group() -> None:
    """The tables: bring them up to date, look whether they are."""


@db_group.command("upgrade")
@common
@click.pass_context
def db_upgrade(ctx: click.Context) -> None:
    """Create the tables, or bring them to the newest version."""
    url = settings_of(ctx).database.url
    migrate.upgrade(url)
    click.echo(f"{place(url)} is at {HEAD}")


@db_group.command("downgrade")
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Don't ask.")
@common
@click.pass_context
def db_downgrade(ctx: click.Context, revision: str, yes: bool) -> None:
    """Take the tables back to REVISION (`base`: none at all). What the dropped ones held is lost."""
    url = settings_of(ctx).database.url
    if not yes:
        click.confirm(f"Drop what came after {revision} in {place(url)}, with its data?", abort=True)
    migrate.downgrade(url, revision)
    click.echo(f"{place(url)} is at {revision}")


@db_group.command("check")
@common
@click.pass_context
def db_check(ctx: click.Context) -> None:
    """Exit 0 if the tables are what this version needs, else 5."""
    url = settings_of(ctx).database.url
    migrate.check(url)
    click.echo(f"{place(url)} is at {HEAD}, as it should be")


@db_group.command("current")
@common
@click.pass_context
def db_current(ctx: click.Context) -> None:
    """Print the revision that the database is at, or `none`."""
    click.echo(migrate.current(settings_of(ctx).database.url) or "none")


@db_group.command("sql")
@common
@click.pass_context
def db_sql(ctx: click.Context) -> None:
    """Print the SQL of all migrations for this kind of database, without touching it."""
    click.echo(migrate.upgrade_sql(settings_of(ctx).database.url), nl=False)
