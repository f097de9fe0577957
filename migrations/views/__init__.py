"""The views for dashboards: `NAME_vNN.sql` has one version of one of them, and is never edited once it was released."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import op

from migrations.views.macros import in_words_of

FOLDER: Final = Path(__file__).parent


def create_view(name: str, version: int) -> None:
    _execute(f"CREATE VIEW {name} AS\n{_query(name, version)}")


def drop_view(name: str) -> None:
    _execute(f"DROP VIEW {name}")


def replace_view(name: str, *, old: int, new: int, dependents: Mapping[str, int] | None = None) -> None:
    """Put the `new` version of a view in the place of the `old` one: in `upgrade`, and the other way in `downgrade`.

    Upwards columns are only added, behind the others: the rights to the view remain, and the views that read it.
    Downwards it is made anew, and so are its `dependents`, the versions of views that read it: each after those it
    reads itself.
    """
    if new > old and _dialect_name() != "sqlite":
        _execute(f"CREATE OR REPLACE VIEW {name} AS\n{_query(name, new)}")
        return
    versions = {name: new, **(dependents or {})}
    for each in reversed(versions):
        drop_view(each)
    for each, version in versions.items():
        create_view(each, version)


def _query(name: str, version: int) -> str:
    return in_words_of(_dialect_name(), (FOLDER / f"{name}_v{version:02}.sql").read_text("utf-8"))


def _dialect_name() -> str:
    return op.get_context().dialect.name


def _execute(sql: str) -> None:
    op.execute(sa.text(sql.replace(":", r"\:")))
