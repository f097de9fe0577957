SELECT
    s.deployment_id,
    s.scan_id,
    s.repository_id,
    m.repository,
    m.branch,
    m.trigger_event,
    CASE WHEN m.pull_request_id IS NULL THEN 0 ELSE 1 END AS is_pull_request,
    s.started_at,
    s.completed_at,
    {{ day(s.started_at) }} AS started_day,
    {{ seconds_between(s.started_at, s.completed_at) }} AS duration_seconds,
    CASE
        WHEN s.completed_at IS NULL AND l.status = 'SCAN_STATUS_CANCELLED' THEN 'cancelled'
        WHEN s.completed_at IS NULL AND l.status = 'SCAN_STATUS_NEVER_FINISHED' THEN 'never_finished'
        WHEN s.completed_at IS NULL
            AND COALESCE(l.status, '') NOT IN ('SCAN_STATUS_COMPLETED', 'SCAN_STATUS_ERROR') THEN 'running'
        WHEN s.exit_code = 0 THEN 'passed'
        WHEN s.exit_code = 1 THEN 'findings'
        WHEN s.exit_code IS NULL THEN 'unknown'
        ELSE 'failed'
    END AS outcome,
    s.exit_code,
    t.findings,
    t.total_time_seconds,
    {{ products_of(s) }} AS products,
    s.has_logs,
    m.commit_sha,
    m.commit_title,
    m.commit_author_name,
    m.commit_author_email,
    m.commit_author_username,
    m.pull_request_id,
    m.pull_request_title,
    m.pull_request_author_username,
    m.config,
    m.repo_url,
    m.ci_job_url,
    s.first_fetched_at,
    s.fetched_at,
    l.status AS listed_status,
    COALESCE(l.is_full_scan, m.is_full_scan) AS is_full_scan
FROM scans s
LEFT JOIN scan_meta m ON m.deployment_id = s.deployment_id AND m.scan_id = s.scan_id
LEFT JOIN scan_stats t ON t.deployment_id = s.deployment_id AND t.scan_id = s.scan_id
LEFT JOIN scan_listings l ON l.deployment_id = s.deployment_id AND l.scan_id = s.scan_id
