SELECT
    w.week,
    w.scan_kind,
    w.scans,
    w.p50_seconds,
    w.p75_seconds,
    w.p95_seconds,
    w.longest_seconds
FROM duration_weeks w
WHERE w.deployment_id = 0
