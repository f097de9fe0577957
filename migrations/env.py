"""Alembic's entry. The program hands in an open connection; offline, only a URL."""

from typing import Any

from alembic import context
from sqlalchemy.engine import make_url

from etl.database import schema

config = context.config
connection = config.attributes.get("connection")


def is_ours(_item: object, _name: str | None, kind: str, reflected: bool, counterpart: Any) -> bool:
    """Tables and indexes that somebody else has made in the same database are none of our business."""
    return not (kind in ("table", "index") and reflected and counterpart is None)


if connection is not None:
    context.configure(
        connection=connection, target_metadata=schema.metadata, transactional_ddl=True, include_object=is_ours
    )
elif context.is_offline_mode():
    url = make_url(config.attributes["url"])
    # MySQL and MariaDB commit at each CREATE: a BEGIN in the script would promise too much.
    is_transactional = url.get_backend_name() != "mysql"
    context.configure(url=url, target_metadata=schema.metadata, literal_binds=True, transactional_ddl=is_transactional)
else:
    raise SystemExit("run migrations by `scan-etl db upgrade`; write one by `make migration`")

with context.begin_transaction():
    context.run_migrations()
