SELECT
    d.day,
    g.deployment_id,
    g.trigger_event,
    g.is_pull_request,
    g.is_full_scan,
    g.outcome,
    g.exit_code,
    e.meaning AS exit_meaning,
    e.fault AS exit_fault,
    g.scans,
    g.findings,
    g.duration_seconds_total,
    d.week,
    d.month
FROM scan_groups g
LEFT JOIN calendar d ON d.day = g.day
LEFT JOIN bi_exit_code e ON e.exit_code = g.exit_code
