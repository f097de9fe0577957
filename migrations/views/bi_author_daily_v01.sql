SELECT
    d.day,
    a.deployment_id,
    a.commit_author_username,
    a.scans,
    a.with_findings,
    a.failed,
    d.week,
    d.month
FROM author_days a
LEFT JOIN calendar d ON d.day = a.day
