-- A row for every repository of the data on every day of the data. A scan whose start lies before 2000 or more than a day
-- after it was fetched is a slip of some clock: it would add a million empty days.
WITH RECURSIVE
started AS (
    SELECT
        s.deployment_id,
        s.scan_id,
        {{ repository_key(s, m) }} AS repository_key,
        s.repository_id,
        m.repository,
        {{ day(s.started_at) }} AS day,
        s.started_at,
        COALESCE(l.is_full_scan, m.is_full_scan) AS is_full_scan,
        t.findings,
        {{ seconds_between(s.started_at, s.completed_at) }} AS duration_seconds,
        {{ outcome_of(s, l) }} AS outcome
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
        SUM(CASE WHEN outcome = 'passed' THEN 1 ELSE 0 END) AS passed,
        SUM(CASE WHEN outcome = 'findings' THEN 1 ELSE 0 END) AS with_findings,
        SUM(CASE WHEN outcome = 'failed' THEN 1 ELSE 0 END) AS failed,
        SUM(CASE WHEN outcome = 'unknown' THEN 1 ELSE 0 END) AS unknown,
        SUM(CASE WHEN outcome = 'running' THEN 1 ELSE 0 END) AS running,
        SUM(CASE WHEN outcome = 'unfinished' THEN 1 ELSE 0 END) AS unfinished,
        SUM(CASE WHEN outcome = 'cancelled' THEN 1 ELSE 0 END) AS cancelled,
        SUM(CASE WHEN outcome = 'never_finished' THEN 1 ELSE 0 END) AS never_finished,
        SUM(CASE WHEN is_full_scan THEN 1 ELSE 0 END) AS full_scans,
        SUM(CASE WHEN NOT is_full_scan THEN 1 ELSE 0 END) AS diff_scans,
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
    x.duration_seconds_longest,
    COALESCE(x.unknown, 0) AS unknown,
    COALESCE(x.unfinished, 0) AS unfinished,
    COALESCE(x.cancelled, 0) AS cancelled,
    COALESCE(x.never_finished, 0) AS never_finished,
    COALESCE(x.full_scans, 0) AS full_scans,
    COALESCE(x.diff_scans, 0) AS diff_scans
FROM days d
CROSS JOIN repositories r
LEFT JOIN daily x ON x.day = d.day AND x.deployment_id = r.deployment_id AND x.repository_key = r.repository_key
