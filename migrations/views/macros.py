"""What the SQL of a view says in other words on each dialect: `{{ day(s.started_at) }}`.

`{0}`, `{1}` are the arguments; what has but one may be any expression, with macros in it. A view that was released
depends on these words as on its own: a macro is added, and never changed.
"""

import re
from typing import Final

_CALL: Final = re.compile(r"\{\{ (\w+)\(((?:(?!\{\{).)*?)\) \}\}", re.DOTALL)  # the innermost

_BEGAN_AT: Final = "CASE WHEN %s THEN {0}.started_at ELSE {0}.first_fetched_at END"
_HAS_BEGUN: Final = "CAST({0}.started_at AS TEXT) <= substr(CAST(CURRENT_TIMESTAMP AS TEXT), 1, 19) || '.999999'"
_A_DAY_AGO: Final = (
    "(SELECT k.day || substr(CAST(CURRENT_TIMESTAMP AS TEXT), 11)"
    " FROM calendar k WHERE k.day < CURRENT_DATE ORDER BY k.day DESC LIMIT 1)"
)
"""Both for SQLite and DuckDB."""
_OUTCOME: Final = (
    "CASE WHEN {0}.completed_at IS NULL AND {1}.status = 'SCAN_STATUS_CANCELLED' THEN 'cancelled'"
    " WHEN {0}.completed_at IS NULL AND {1}.status = 'SCAN_STATUS_NEVER_FINISHED' THEN 'never_finished'"
    " WHEN {0}.completed_at IS NULL AND COALESCE({1}.status, '') NOT IN ('SCAN_STATUS_COMPLETED', 'SCAN_STATUS_ERROR')"
    " THEN CASE WHEN %s < %s THEN 'unfinished' ELSE 'running' END"
    " WHEN {0}.exit_code = 0 THEN 'passed'"
    " WHEN {0}.exit_code = 1 THEN 'findings'"
    " WHEN {0}.exit_code IS NULL THEN 'unknown' ELSE 'failed' END"
)
_IS_FULL: Final = "COALESCE({0}.is_full_scan, {1}.is_full_scan, {1}.pull_request_id IS NULL)"
_COUNT: Final = (
    "COALESCE((SELECT CASE WHEN ABS(SUM(i.value)) <= 9007199254740991 THEN CAST(SUM(i.value) AS %s) END"
    " FROM scan_stat_items i LEFT JOIN bi_product b ON b.spelling = i.name"
    " WHERE i.deployment_id = {0}.deployment_id AND i.scan_id = {0}.scan_id AND i.category = 'findings_by_product'"
    " AND COALESCE(b.product, i.name) = '{2}'), {1}.findings_{2})"
)
MACROS: Final[dict[str, dict[str, str]]] = {
    # The date of an instant, in UTC.
    "day": {
        "sqlite": "date({0})",
        "postgresql": "({0} AT TIME ZONE 'UTC')::date",
        "mysql": "DATE({0})",
    },
    # SQLite knows no type of an expression but by a CAST, and clients go by it. DuckDB runs the views of SQLite itself:
    # for it an INTEGER and a REAL have 32 bits, there are no dates of 'now', and only few functions have its names.
    "as_text": {"sqlite": "CAST({0} AS TEXT)", "postgresql": "{0}", "mysql": "{0}"},
    "as_whole": {
        "sqlite": "CAST({0} AS BIGINT)",
        "postgresql": "CAST({0} AS BIGINT)",
        "mysql": "CAST({0} AS SIGNED)",
    },
    "as_real": {
        "sqlite": "CAST({0} AS DOUBLE)",
        "postgresql": "CAST({0} AS DOUBLE PRECISION)",
        "mysql": "({0} + 0e0)",
    },
    "today": {
        "sqlite": "CURRENT_DATE",
        "postgresql": "(now() AT TIME ZONE 'UTC')::date",
        "mysql": "UTC_DATE()",
    },
    "now": {
        "sqlite": "CURRENT_TIMESTAMP",
        "postgresql": "now()",
        "mysql": "UTC_TIMESTAMP(6)",
    },
    # The day so many days before today, and how many days ago a day was.
    "days_ago": {
        "sqlite": "(SELECT k.day FROM calendar k WHERE k.day <= CURRENT_DATE ORDER BY k.day DESC LIMIT 1 OFFSET {0})",
        "postgresql": "((now() AT TIME ZONE 'UTC')::date - {0})",
        "mysql": "(UTC_DATE() - INTERVAL {0} DAY)",
    },
    "days_since": {
        "sqlite": "CASE WHEN {0} IS NOT NULL"
        " THEN (SELECT COUNT(*) FROM calendar k WHERE k.day > {0} AND k.day <= CURRENT_DATE) END",
        "postgresql": "((now() AT TIME ZONE 'UTC')::date - {0})",
        "mysql": "DATEDIFF(UTC_DATE(), {0})",
    },
    # The Monday of its week.
    "week": {
        "sqlite": "date({0}, 'weekday 0', '-6 days')",
        "postgresql": "date_trunc('week', {0} AT TIME ZONE 'UTC')::date",
        "mysql": "DATE({0}) - INTERVAL WEEKDAY({0}) DAY",
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
        "sqlite": _OUTCOME % (f"CAST({_BEGAN_AT % _HAS_BEGUN} AS TEXT)", _A_DAY_AGO),
        "postgresql": _OUTCOME % (_BEGAN_AT % "{0}.started_at <= now()", "now() - interval '1 day'"),
        "mysql": _OUTCOME % (_BEGAN_AT % "{0}.started_at <= UTC_TIMESTAMP(6)", "UTC_TIMESTAMP(6) - INTERVAL 1 DAY"),
    },
    # The `repository_key` of an id.
    "id_key": {
        "sqlite": "'id:' || {0}",
        "postgresql": "'id:' || {0}",
        "mysql": "CONCAT('id:', {0})",
    },
    # `x`, the row of a table of days for the day `d` and the repository `r`, if there is one. PostgreSQL gets those of
    # a day at a time: left alone, it reads all days, however few are asked for (of two years of 2,400 repositories,
    # 2.0 s for the last 30 days instead of 0.1, and 7.0 s for all of them instead of 1.5).
    "join_row_of_day": {
        "sqlite": "LEFT JOIN {0} x"
        " ON x.deployment_id = r.deployment_id AND x.repository_key = r.repository_key AND x.day = d.day",
        "postgresql": "LEFT JOIN LATERAL (SELECT * FROM {0} z WHERE z.day = d.day OFFSET 0) x"
        " ON x.deployment_id = r.deployment_id AND x.repository_key = r.repository_key",
        "mysql": "LEFT JOIN {0} x"
        " ON x.deployment_id = r.deployment_id AND x.repository_key = r.repository_key AND x.day = d.day",
    },
    # The first line of a text.
    "first_line": {
        "sqlite": "rtrim(substr({0}, 1, instr({0} || '\n', '\n') - 1), '\r')",
        "postgresql": "rtrim(split_part({0}, chr(10), 1), chr(13))",
        "mysql": "TRIM(TRAILING CHAR(13) FROM SUBSTRING_INDEX({0}, CHAR(10), 1))",
    },
    # Whether a scan is a full scan, of its listing and of its row of `scan_meta`; where neither says so, one without a
    # pull request.
    "is_full": {
        "sqlite": f"CAST({_IS_FULL} AS BIGINT)",
        "postgresql": _IS_FULL,
        "mysql": _IS_FULL,
    },
    # The findings of a product, of a row of `scans` and of its listing: by the details, or else by the listing.
    "findings_of": {
        "sqlite": _COUNT % "BIGINT",
        "postgresql": _COUNT % "BIGINT",
        "mysql": _COUNT % "SIGNED",
    },
}


def in_words_of(dialect_name: str, sql: str) -> str:
    """The SQL with each macro in this dialect's words. KeyError for one that isn't there."""

    def words(call: re.Match[str]) -> str:
        template = MACROS[call[1]][dialect_name]
        return template.format(*(call[2].split(", ") if "{1}" in template else [call[2]]))

    while (said := _CALL.sub(words, sql)) != sql:
        sql = said
    return sql
