"""What dashboards ask: each question as it is asked of the views, and the same of the tables of scans by hand.

`{month}`, `{quarter}` and `{fortnight}` are the first days of the last 30, 90 and 14 days of the data. In the SQL by
hand `x` is one row a scan, and `{seconds}` what lies between its start and its end, in the words of the dialect.
"""

from typing import NamedTuple

ROWS = """
SELECT
    s.deployment_id, s.scan_id, s.repository_id, m.repository, s.started_at, s.exit_code, s.fetched_at,
    {{ day(s.started_at) }} AS day,
    {{ week(s.started_at) }} AS week,
    CASE WHEN s.completed_at >= s.started_at THEN {seconds} END AS seconds,
    CASE WHEN s.completed_at IS NULL THEN 'open' WHEN s.exit_code = 0 THEN 'passed' WHEN s.exit_code = 1 THEN 'findings'
        ELSE 'failed' END AS outcome,
    CASE WHEN COALESCE(l.is_full_scan, m.is_full_scan, m.pull_request_id IS NULL) THEN 1 ELSE 0 END AS is_full,
    m.trigger_event, m.commit_author_username AS author, t.findings
FROM scans s
JOIN scan_meta m ON m.deployment_id = s.deployment_id AND m.scan_id = s.scan_id
JOIN scan_stats t ON t.deployment_id = s.deployment_id AND t.scan_id = s.scan_id
LEFT JOIN scan_listings l ON l.deployment_id = s.deployment_id AND l.scan_id = s.scan_id
"""
SECONDS = {
    # Its date functions round to milliseconds, so whole seconds and microseconds are subtracted apart.
    "sqlite": "(strftime('%s', substr(s.completed_at, 1, 19)) - strftime('%s', substr(s.started_at, 1, 19)))"
    " + (substr(s.completed_at, 21, 6) - substr(s.started_at, 21, 6)) / 1000000.0",
    "postgresql": "EXTRACT(EPOCH FROM s.completed_at - s.started_at)::double precision",
    "mysql": "TIMESTAMPDIFF(MICROSECOND, s.started_at, s.completed_at) / 1e6",
}
NEWEST_FULL = """
SELECT deployment_id, scan_id, findings FROM (
    SELECT x.*, ROW_NUMBER() OVER (
        PARTITION BY deployment_id, repository_id ORDER BY started_at DESC, scan_id DESC
    ) AS n FROM x WHERE is_full = 1 AND outcome IN ('passed', 'findings')
) ranked WHERE n = 1
"""


def percentiles(columns: str, which: str = "seconds IS NOT NULL") -> str:
    """p50 and p95 of the durations, by these columns: between two durations on the line from one to the other."""

    def at(percent: int) -> str:
        place, part = f"((c - 1) * {percent} - (c - 1) * {percent} % 100) / 100 + 1", f"(c - 1) * {percent} % 100"
        lower = f"CASE WHEN n = {place} THEN seconds * (100 - {part}) / 100.0 ELSE 0 END"
        return f"SUM({lower} + CASE WHEN n = {place} + 1 THEN seconds * ({part}) / 100.0 ELSE 0 END)"

    return f"""
SELECT {columns}, {at(50)}, {at(95)} FROM (
    SELECT x.*, ROW_NUMBER() OVER (PARTITION BY {columns} ORDER BY seconds) AS n,
        COUNT(*) OVER (PARTITION BY {columns}) AS c
    FROM x WHERE {which}
) ranked GROUP BY {columns}"""


class Question(NamedTuple):
    """A question, the SQL that a dashboard asks, and the SQL that counts by hand."""

    text: str
    asked: str
    by_hand: str


QUESTIONS = (
    Question(
        "repositories that were not scanned in the last seven days of the data",
        "SELECT deployment_id, repository_id FROM bi_repository WHERE scans > 0 AND last_scan_at <  '{week}'",
        "SELECT deployment_id, repository_id FROM x GROUP BY deployment_id, repository_id HAVING MAX(day) < '{week}'",
    ),
    Question(
        "how long scans take, by repository",
        "SELECT deployment_id, repository_id, scans, duration_seconds_average, duration_seconds_longest"
        " FROM bi_repository WHERE scans > 0",
        "SELECT deployment_id, repository_id, COUNT(*), AVG(seconds), MAX(seconds) FROM x"
        " GROUP BY deployment_id, repository_id",
    ),
    Question(
        "what fails, and since when",
        "SELECT day, SUM(scans), SUM(CASE WHEN outcome = 'failed' THEN scans ELSE 0 END) FROM bi_scan_group_daily"
        " GROUP BY day",
        "SELECT day, COUNT(*), SUM(CASE WHEN outcome = 'failed' THEN 1 ELSE 0 END) FROM x GROUP BY day",
    ),
    Question(
        "findings now, by product",
        "SELECT SUM(findings_code) FROM bi_repository",
        f"SELECT SUM(COALESCE(i.value, l.findings_code)) FROM ({NEWEST_FULL}) f"
        " LEFT JOIN scan_stat_items i ON i.deployment_id = f.deployment_id AND i.scan_id = f.scan_id"
        " LEFT JOIN scan_listings l ON l.deployment_id = f.deployment_id AND l.scan_id = f.scan_id",
    ),
    Question(
        "is anything missing",
        "SELECT day, SUM(listed), SUM(stored), SUM(waiting), SUM(dead), SUM(expired), SUM(missing) FROM bi_coverage"
        " WHERE listed > 0 GROUP BY day",
        "SELECT {{ day(l.started_at) }}, COUNT(*), COUNT(s.scan_id), 0, 0, 0, 0 FROM scan_listings l"
        " LEFT JOIN scans s ON s.deployment_id = l.deployment_id AND s.scan_id = l.scan_id GROUP BY 1",
    ),
    Question(
        "repositories by product",
        "SELECT COUNT(last_code_day), COUNT(last_supply_chain_day) FROM bi_repository",
        "SELECT COUNT(DISTINCT CASE WHEN p.product = 'sast' THEN s.repository_id END),"
        " COUNT(DISTINCT CASE WHEN p.product = 'sca' THEN s.repository_id END) FROM scans s"
        " JOIN scan_products p ON p.deployment_id = s.deployment_id AND p.scan_id = s.scan_id",
    ),
    Question(
        "scans of the last 30 days, by day and outcome",
        "SELECT day, SUM(scans) FROM bi_scan_group_daily WHERE day >= '{month}' AND outcome = 'findings' GROUP BY day",
        "SELECT day, COUNT(*) FROM x WHERE day >= '{month}' AND outcome = 'findings' GROUP BY day",
    ),
    Question(
        "scans of a day, one by one",
        "SELECT started_day, COUNT(*) FROM bi_scan WHERE started_day = '{last}' GROUP BY started_day",
        "SELECT day, COUNT(*) FROM x WHERE day = '{last}' GROUP BY day",
    ),
    Question(
        "scans of the last 30 days, by day",
        "SELECT day, SUM(scans), SUM(passed), SUM(with_findings), SUM(failed) FROM bi_scan_daily WHERE day >= '{month}'"
        " GROUP BY day",
        "SELECT day, COUNT(*), SUM(CASE WHEN outcome = 'passed' THEN 1 ELSE 0 END),"
        " SUM(CASE WHEN outcome = 'findings' THEN 1 ELSE 0 END), SUM(CASE WHEN outcome = 'failed' THEN 1 ELSE 0 END)"
        " FROM x WHERE day >= '{month}' GROUP BY day",
    ),
    Question(
        "one repository's last 30 days",
        "SELECT day, scans, failed FROM bi_scan_daily WHERE day >= '{month}' AND repository = 'acme/service-17'"
        " AND scans > 0",
        "SELECT day, COUNT(*), SUM(CASE WHEN outcome = 'failed' THEN 1 ELSE 0 END) FROM x WHERE day >= '{month}'"
        " AND repository = 'acme/service-17' GROUP BY day",
    ),
    Question(
        "median and p95 by week",
        "SELECT week, p50_seconds, p95_seconds FROM bi_duration_weekly_all WHERE scan_kind = 'all'",
        percentiles("week"),
    ),
    Question(
        "median and p95 by week, full and diff apart, of the last 90 days",
        "SELECT week, CASE WHEN scan_kind = 'full' THEN 1 ELSE 0 END, p50_seconds, p95_seconds"
        " FROM bi_duration_weekly_all WHERE scan_kind <> 'all' AND week >= '{quarter_week}'",
        percentiles("week, is_full", "seconds IS NOT NULL AND week >= '{quarter_week}'"),
    ),
    Question(
        "repositories whose last scan is more than 14 days old",
        "SELECT deployment_id, repository_id, last_scan_at FROM bi_repository WHERE last_scan_at < '{fortnight}'",
        "SELECT deployment_id, repository_id, MAX(started_at) FROM x GROUP BY deployment_id, repository_id"
        " HAVING MAX(started_at) < '{fortnight}'",
    ),
    Question(
        "findings now",
        "SELECT SUM(findings) FROM bi_repository",
        f"SELECT SUM(findings) FROM ({NEWEST_FULL}) f",
    ),
    Question(
        "findings at each week's end",
        "SELECT SUM(findings) FROM bi_findings_weekly WHERE week = '{last_week}'",
        f"SELECT SUM(findings) FROM ({NEWEST_FULL}) f",
    ),
    Question(
        "failures of the last 90 days by exit code",
        "SELECT exit_code, SUM(scans) FROM bi_scan_group_daily WHERE outcome = 'failed' AND day >= '{quarter}'"
        " GROUP BY exit_code",
        "SELECT exit_code, COUNT(*) FROM x WHERE outcome = 'failed' AND day >= '{quarter}' GROUP BY exit_code",
    ),
    Question(
        "full and diff scans by week and trigger",
        "SELECT week, trigger_event, SUM(CASE WHEN is_full_scan THEN scans ELSE 0 END), SUM(scans)"
        " FROM bi_scan_group_daily GROUP BY week, trigger_event",
        "SELECT week, trigger_event, SUM(is_full), COUNT(*) FROM x GROUP BY week, trigger_event",
    ),
    Question(
        "who starts the most scans, in the last 90 days",
        "SELECT commit_author_username, SUM(scans), SUM(with_findings) FROM bi_author_daily WHERE day >= '{quarter}'"
        " GROUP BY commit_author_username",
        "SELECT author, COUNT(*), SUM(CASE WHEN outcome = 'findings' THEN 1 ELSE 0 END) FROM x WHERE day >= '{quarter}'"
        " GROUP BY author",
    ),
    Question(
        "how new the data are",
        "SELECT deployment_id, newest_scan_at, newest_fetch_at FROM bi_freshness",
        "SELECT deployment_id, MAX(started_at), MAX(fetched_at) FROM x GROUP BY deployment_id",
    ),
    Question(
        "coverage of the last 30 days by day",
        "SELECT day, SUM(listed), SUM(stored) FROM bi_coverage WHERE day >= '{month}' GROUP BY day",
        "SELECT {{ day(l.started_at) }}, COUNT(*), COUNT(s.scan_id) FROM scan_listings l"
        " LEFT JOIN scans s ON s.deployment_id = l.deployment_id AND s.scan_id = l.scan_id"
        " WHERE l.started_at >= '{month}' GROUP BY 1",
    ),
    Question(
        "the names of all repositories that have scans",
        "SELECT DISTINCT repository FROM bi_repository WHERE scans > 0",
        "SELECT DISTINCT repository FROM x",
    ),
    Question(
        "the newest 50 scans",
        "SELECT deployment_id, scan_id FROM bi_scan ORDER BY started_at DESC, scan_id DESC LIMIT 50",
        "SELECT deployment_id, scan_id FROM x ORDER BY started_at DESC, scan_id DESC LIMIT 50",
    ),
    Question(
        "one repository's newest 200 scans",
        "SELECT scan_id, outcome FROM bi_scan WHERE deployment_id ="
        " (SELECT deployment_id FROM bi_repository WHERE repository = 'acme/service-17') AND repository_id ="
        " (SELECT repository_id FROM bi_repository WHERE repository = 'acme/service-17') AND exit_code IS NOT NULL"
        " ORDER BY started_at DESC LIMIT 200",
        "SELECT scan_id, outcome FROM x WHERE repository = 'acme/service-17' AND exit_code IS NOT NULL"
        " ORDER BY started_at DESC LIMIT 200",
    ),
    Question("how many scans", "SELECT SUM(scans) FROM bi_deployment", "SELECT COUNT(*) FROM x"),
    Question(
        "repositories by product, in the last 90 days",
        "SELECT SUM(CASE WHEN last_code_day >= '{quarter}' THEN 1 ELSE 0 END),"
        " SUM(CASE WHEN last_supply_chain_day >= '{quarter}' THEN 1 ELSE 0 END) FROM bi_repository",
        "SELECT COUNT(DISTINCT CASE WHEN p.product = 'sast' THEN x.repository_id END),"
        " COUNT(DISTINCT CASE WHEN p.product = 'sca' THEN x.repository_id END) FROM x"
        " JOIN scan_products p ON p.deployment_id = x.deployment_id AND p.scan_id = x.scan_id WHERE day >= '{quarter}'",
    ),
)
