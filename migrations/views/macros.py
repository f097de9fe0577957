"""What the SQL of a view says in other words on each dialect: `{{ day(s.started_at) }}`.

`{0}`, `{1}` are the arguments. A view that was released depends on these words as on its own: a macro is added, and
never changed.
"""

import re
from typing import Final

_CALL: Final = re.compile(r"\{\{ (\w+)\(([^()]*)\) \}\}")

MACROS: Final[dict[str, dict[str, str]]] = {
    # The date of an instant, in UTC.
    "day": {
        "sqlite": "substr({0}, 1, 10)",
        "postgresql": "({0} AT TIME ZONE 'UTC')::date",
        "mysql": "DATE({0})",
    },
    "day_after": {
        "sqlite": "strftime('%Y-%m-%d %H:%M:%f', {0}, '+1 day')",
        "postgresql": "{0} + interval '1 day'",
        "mysql": "{0} + INTERVAL 1 DAY",
    },
    # With microseconds. SQLite keeps instants as text of a fixed width; its date functions round to milliseconds, so
    # whole seconds and microseconds are subtracted apart.
    "seconds_between": {
        "sqlite": (
            "(strftime('%s', substr({1}, 1, 19)) - strftime('%s', substr({0}, 1, 19)))"
            " + (substr({1}, 21, 6) - substr({0}, 21, 6)) / 1000000.0"
        ),
        "postgresql": "EXTRACT(EPOCH FROM {1} - {0})::double precision",
        "mysql": "TIMESTAMPDIFF(MICROSECOND, {0}, {1}) / 1e6",
    },
    # The products of a row of `scans`, in the words of `bi_product`, sorted, with commas between them.
    "products_of": {
        "sqlite": "(SELECT group_concat(product, ',') FROM (SELECT DISTINCT COALESCE(b.product, p.product) AS product"
        " FROM scan_products p LEFT JOIN bi_product b ON b.spelling = p.product"
        " WHERE p.deployment_id = {0}.deployment_id AND p.scan_id = {0}.scan_id ORDER BY 1))",
        "postgresql": "(SELECT string_agg(DISTINCT COALESCE(b.product, p.product), ','"
        " ORDER BY COALESCE(b.product, p.product))"
        " FROM scan_products p LEFT JOIN bi_product b ON b.spelling = p.product"
        " WHERE p.deployment_id = {0}.deployment_id AND p.scan_id = {0}.scan_id)",
        "mysql": "(SELECT GROUP_CONCAT(DISTINCT COALESCE(b.product, p.product)"
        " ORDER BY COALESCE(b.product, p.product) SEPARATOR ',')"
        " FROM scan_products p LEFT JOIN bi_product b ON b.spelling = p.product"
        " WHERE p.deployment_id = {0}.deployment_id AND p.scan_id = {0}.scan_id)",
    },
    "text_of": {
        "sqlite": "CAST({0} AS VARCHAR)",
        "postgresql": "CAST({0} AS VARCHAR)",
        "mysql": "CAST({0} AS CHAR)",
    },
    # For a WITH RECURSIVE: `days`, with a row for each `day` from `first_day` to `last_day` of the argument's one row.
    # MySQL and MariaDB end a recursion after 1,000 rounds: there a span of 2^17 days, which is more than 350 years, is
    # halved until the spans are days.
    "days_of": {
        "sqlite": "days AS (SELECT first_day AS day FROM {0} WHERE first_day IS NOT NULL"
        " UNION ALL SELECT date(day, '+1 day') FROM days, {0} WHERE day < last_day)",
        "postgresql": "days AS (SELECT first_day AS day FROM {0} WHERE first_day IS NOT NULL"
        " UNION ALL SELECT day + 1 FROM days, {0} WHERE day < last_day)",
        "mysql": "spans AS (SELECT first_day AS day, 131072 AS width FROM {0} WHERE first_day IS NOT NULL"
        " UNION ALL SELECT day, width DIV 2 FROM spans WHERE width > 1"
        " UNION ALL SELECT day + INTERVAL (width DIV 2) DAY, width DIV 2 FROM spans, {0}"
        " WHERE width > 1 AND day + INTERVAL (width DIV 2) DAY <= last_day),"
        " days AS (SELECT day FROM spans WHERE width = 1)",
    },
}


def in_words_of(dialect_name: str, sql: str) -> str:
    """The SQL with each macro in this dialect's words. KeyError for one that isn't there."""
    return _CALL.sub(lambda call: MACROS[call[1]][dialect_name].format(*call[2].split(", ")), sql)
