"""Puts the dictionary into the database's own catalogue, as comments, where whoever looks at a table finds it.

SQLite has no comments. MySQL and MariaDB have none for views, and want a column's whole definition to change one.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from sqlalchemy import Connection, Dialect

from etl.database.dictionary import Dictionary, Entry
from etl.database.schema import metadata

Comments = Mapping[str, str]
"""Those of a table or view, under an empty name, and of its columns."""

_OF_POSTGRESQL: Final = """
SELECT c.relname, coalesce(a.attname, ''), d.description
FROM pg_description d
JOIN pg_class c ON d.classoid = 'pg_class'::regclass AND d.objoid = c.oid AND pg_table_is_visible(c.oid)
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid AND d.objsubid > 0
"""
_OF_MYSQL: Final = """
SELECT table_name, '', table_comment FROM information_schema.tables WHERE table_schema = DATABASE()
UNION ALL
SELECT table_name, column_name, column_comment FROM information_schema.columns WHERE table_schema = DATABASE()
"""


def write_comments(connection: Connection, dictionary: Dictionary) -> None:
    """Change the comments that say something else."""
    dialect = connection.dialect
    if dialect.supports_comments:
        present: dict[str, dict[str, str]] = defaultdict(dict)
        for table, column, comment in connection.exec_driver_sql(
            _OF_MYSQL if dialect.inline_comments else _OF_POSTGRESQL
        ):
            present[table][column] = comment
        for statement in comment_statements(dialect, dictionary, present):
            connection.exec_driver_sql(statement)


def comment_statements(dialect: Dialect, dictionary: Dictionary, present: Mapping[str, Comments]) -> Iterator[str]:
    """The SQL that makes what it should be of the `present` comments."""
    if not dialect.supports_comments:
        return
    for table, entry in dictionary.tables.items():
        wrong = _wrong(entry, present.get(table, {}))
        if not dialect.inline_comments:
            yield from _comment_on("TABLE", table, wrong)
        elif wrong:
            yield _alter(dialect, table, wrong)
    if not dialect.inline_comments:
        for view, entry in dictionary.views.items():
            yield from _comment_on("VIEW", view, _wrong(entry, present.get(view, {})))


def _wrong(entry: Entry, present: Comments) -> Comments:
    wanted = {"": entry.meaning, **{name: column.sentence() for name, column in entry.columns.items()}}
    return {name: comment for name, comment in wanted.items() if present.get(name) != comment}


def _comment_on(kind: str, relation: str, wrong: Comments) -> Iterator[str]:
    for name, comment in wrong.items():
        thing = f"COLUMN {relation}.{name}" if name else f"{kind} {relation}"
        yield f"COMMENT ON {thing} IS {_quoted(comment)}"


def _alter(dialect: Dialect, table: str, wrong: Comments) -> str:
    """One statement a table, for it has to wait until nobody uses the table. No row is read or written."""
    compiler = dialect.ddl_compiler(dialect, None)  # type: ignore[arg-type]  # as SQLAlchemy makes it for a definition
    changes = []
    for name, comment in wrong.items():
        column = metadata.tables[table].columns[name] if name else None
        what = "" if column is None else f"MODIFY COLUMN {compiler.get_column_specification(column)} "
        changes.append(f"{what}COMMENT {_quoted(comment)}")
    return f"ALTER TABLE {table} {', '.join(changes)}"


def _quoted(comment: str) -> str:
    """The texts of the dictionary have no backslash and no percent sign."""
    return "'{}'".format(comment.replace("'", "''"))
