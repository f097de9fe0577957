-- A row for every repository of the data on every day of the data. A scan whose start lies before 2000 or more than a day
-- after it was fetched is a slip of some clock: it would add a million empty days.
WITH RECURSIVE
started AS (
    SELECT
        s.deployment_id,
        s.scan_id,
        COALESCE({{ text_of(s.repository_id) }}, m.repository, '') AS repository_key,
        s.repository_id,
        m.repository,
        {{ day(s.started_at) }} AS day,
        s.started_at,
        s.exit_code,
        t.findings,
        {{ seconds_between(s.started_at, s.completed_at) }} AS duration_seconds,
        CASE
            WHEN s.completed_at IS NOT NULL OR l.status IN ('SCAN_STATUS_COMPLETED', 'SCAN_STATUS_ERROR') THEN 'ended'
            WHEN l.status IN ('SCAN_STATUS_CANCELLED', 'SCAN_STATUS_NEVER_FINISHED') THEN 'stopped'
            ELSE 'running'
        END AS state
    FROM scans s
    LEFT JOIN scan_meta m ON m.deployment_id = s.deployment_id AND m.scan_id = s.scan_id
    LEFT JOIN scan_stats t ON t.deployment_id = s.deployment_id AND t.scan_id = s.scan_id
    LEFT JOIN scan_listings l ON l.deployment_id = s.deployment_id AND l.scan_id = s.scan_id
    WHERE s.started_at >= '2000-01-01' AND s.started_at < {{ day_after(s.first_fetched_at) }}
),
bounds AS (SELECT MIN(day) AS first_day, MAX(day) AS last_day FROM started),
{{ days_of(bounds) }},
repositories AS (
    SELECT deployment_id, repository_key, repository_id, repository
    FROM (
        SELECT
            started.*,
            ROW_NUMBER() OVER (
                PARTITION BY deployment_id, repository_key
                ORDER BY CASE WHEN repository IS NULL THEN 1 ELSE 0 END, started_at DESC, scan_id DESC
            ) AS newest
        FROM started
    ) AS named
    WHERE newest = 1
),
daily AS (
    SELECT
        deployment_id,
        repository_key,
        day,
        COUNT(*) AS scans,
        SUM(CASE WHEN state = 'ended' AND exit_code = 0 THEN 1 ELSE 0 END) AS passed,
        SUM(CASE WHEN state = 'ended' AND exit_code = 1 THEN 1 ELSE 0 END) AS with_findings,
        SUM(CASE WHEN state = 'ended' AND exit_code NOT IN (0, 1) THEN 1 ELSE 0 END) AS failed,
        SUM(CASE WHEN state = 'running' THEN 1 ELSE 0 END) AS running,
        SUM(CASE WHEN findings BETWEEN -9007199254740991 AND 9007199254740991 THEN findings ELSE 0 END) AS findings,
        SUM(duration_seconds) AS duration_seconds_total,
        AVG(duration_seconds) AS duration_seconds_average,
        MAX(duration_seconds) AS duration_seconds_longest
    FROM started
    GROUP BY deployment_id, repository_key, day
)
SELECT
    d.day,
    r.deployment_id,
    r.repository_id,
    r.repository,
    COALESCE(x.scans, 0) AS scans,
    COALESCE(x.passed, 0) AS passed,
    COALESCE(x.with_findings, 0) AS with_findings,
    COALESCE(x.failed, 0) AS failed,
    COALESCE(x.running, 0) AS running,
    COALESCE(x.findings, 0) AS findings,
    COALESCE(x.duration_seconds_total, 0) AS duration_seconds_total,
    x.duration_seconds_average,
    x.duration_seconds_longest
FROM days d
CROSS JOIN repositories r
LEFT JOIN daily x ON x.day = d.day AND x.deployment_id = r.deployment_id AND x.repository_key = r.repository_key
