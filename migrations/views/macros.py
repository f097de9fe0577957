"""What the SQL of a view says in other words on each dialect: `{{ day(s.started_at) }}`.

`{0}`, `{1}` are the arguments. A view that was released depends on these words as on its own: a macro is added, and
never changed.
"""

import re
from typing import Final

_CALL: Final = re.compile(r"\{\{ (\w+)\(([^()]*)\) \}\}")

_REPOSITORY_KEY: Final = "CASE WHEN {0}.repository_id IS NULL THEN %s ELSE %s END"
_OUTCOME: Final = (
    "CASE WHEN {0}.completed_at IS NULL AND {1}.status = 'SCAN_STATUS_CANCELLED' THEN 'cancelled'"
    " WHEN {0}.completed_at IS NULL AND {1}.status = 'SCAN_STATUS_NEVER_FINISHED' THEN 'never_finished'"
    " WHEN {0}.completed_at IS NULL AND COALESCE({1}.status, '') NOT IN ('SCAN_STATUS_COMPLETED', 'SCAN_STATUS_ERROR')"
    " THEN CASE WHEN COALESCE({0}.started_at, {0}.first_fetched_at) < %s THEN 'unfinished' ELSE 'running' END"
    " WHEN {0}.exit_code = 0 THEN 'passed'"
    " WHEN {0}.exit_code = 1 THEN 'findings'"
    " WHEN {0}.exit_code IS NULL THEN 'unknown' ELSE 'failed' END"
)
_COUNT: Final = (
    "COALESCE((SELECT CAST(SUM(i.value) AS %s) FROM scan_stat_items i LEFT JOIN bi_product b ON b.spelling = i.name"
    " WHERE i.deployment_id = {0}.deployment_id AND i.scan_id = {0}.scan_id AND i.category = 'findings_by_product'"
    " AND COALESCE(b.product, i.name) = '{2}'), {1}.findings_{2})"
)
MACROS: Final[dict[str, dict[str, str]]] = {
    # The date of an instant, in UTC.
    "day": {
        "sqlite": "substr({0}, 1, 10)",
        "postgresql": "({0} AT TIME ZONE 'UTC')::date",
        "mysql": "DATE({0})",
    },
    # The Monday of its week, and the first day of its month.
    "week": {
        "sqlite": "date({0}, 'weekday 0', '-6 days')",
        "postgresql": "date_trunc('week', {0} AT TIME ZONE 'UTC')::date",
        "mysql": "DATE({0}) - INTERVAL WEEKDAY({0}) DAY",
    },
    "month": {
        "sqlite": "substr({0}, 1, 8) || '01'",
        "postgresql": "date_trunc('month', {0} AT TIME ZONE 'UTC')::date",
        "mysql": "DATE({0}) - INTERVAL (DAYOFMONTH({0}) - 1) DAY",
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
    # How a scan ended, of a row of `scans` and of its listing. What has no end is given up after a day.
    "outcome_of": {
        "sqlite": _OUTCOME % "strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 day')",
        "postgresql": _OUTCOME % "now() - interval '1 day'",
        "mysql": _OUTCOME % "UTC_TIMESTAMP(6) - INTERVAL 1 DAY",
    },
    # What a repository is within its deployment, of a row of `scans` and of `scan_meta`: its id, or else its name.
    "repository_key": {
        "sqlite": _REPOSITORY_KEY % ("'name:' || COALESCE({1}.repository, '')", "'id:' || {0}.repository_id"),
        "postgresql": _REPOSITORY_KEY % ("'name:' || COALESCE({1}.repository, '')", "'id:' || {0}.repository_id"),
        "mysql": _REPOSITORY_KEY
        % (
            "CONCAT('name:', COALESCE({1}.repository, ''))",
            "CONCAT('id:', {0}.repository_id)",
        ),
    },
    # The first line of a text.
    "first_line": {
        "sqlite": "rtrim(substr({0}, 1, instr({0} || char(10), char(10)) - 1), char(13))",
        "postgresql": "rtrim(split_part({0}, chr(10), 1), chr(13))",
        "mysql": "TRIM(TRAILING CHAR(13) FROM SUBSTRING_INDEX({0}, CHAR(10), 1))",
    },
    # The findings of a product, of a row of `scans` and of its listing: by the details, or else by the listing.
    "findings_of": {
        "sqlite": _COUNT % "INTEGER",
        "postgresql": _COUNT % "BIGINT",
        "mysql": _COUNT % "SIGNED",
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
