"""Alembic's entry. The program hands in an open connection; offline, only a URL."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import JSON, Text
from sqlalchemy.engine import make_url

from etl.database import schema
from etl.database.types import UtcDateTime
from etl.database.version import VERSION_TABLE, own_schema, version_table

config = context.config
connection = config.attributes.get("connection")


def is_ours(item: Any, _name: str | None, kind: str, reflected: bool, counterpart: Any) -> bool:
    """Tables and indexes that somebody else has made in the same database are none of our business, nor are the keys
    that PostgreSQL adds to each partition of a table of ours."""
    if not reflected or counterpart is not None:
        return True
    if kind == "foreign_key_constraint":
        return {key.target_fullname.split(".")[-2] for key in item.elements} <= set(schema.metadata.tables)
    return kind not in ("table", "index")


def in_our_words(kind: str, item: object, _context: object) -> str | Literal[False]:
    """In a new migration, types that differ by dialect have the names that `columns` gives them."""
    names: dict[type, str] = {UtcDateTime: "INSTANT", JSON: "JSON", Text: "TEXT"}
    return names.get(type(item), False) if kind == "type" else False


if connection is not None:
    context.configure(
        connection=connection,
        target_metadata=schema.metadata,
        version_table=version_table(connection) or VERSION_TABLE,
        version_table_schema=own_schema(connection),
        address=config.attributes.get("address"),
        transactional_ddl=True,
        include_object=is_ours,
        render_item=in_our_words,
    )
elif context.is_offline_mode():
    url = make_url(config.attributes["url"])
    # MySQL and MariaDB commit at each CREATE: a BEGIN in the script would promise too much.
    is_transactional = url.get_backend_name() != "mysql"
    context.configure(
        url=url,
        target_metadata=schema.metadata,
        version_table=VERSION_TABLE,
        literal_binds=True,
        transactional_ddl=is_transactional,
    )
else:
    raise SystemExit("run migrations by `scan-etl db upgrade`; write one by `make migration`")

with context.begin_transaction():
    context.run_migrations()
