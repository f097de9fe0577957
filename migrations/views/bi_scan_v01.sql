SELECT
    s.deployment_id,
    s.scan_id,
    s.repository_id,
    m.repository,
    m.branch,
    m.trigger_event,
    {{ as_whole(CASE WHEN m.pull_request_id IS NULL THEN 0 ELSE 1 END) }} AS is_pull_request,
    s.started_at,
    s.completed_at,
    s.started_day,
    s.duration_seconds,
    {{ as_text({{ outcome_of(s, l) }}) }} AS outcome,
    s.exit_code,
    t.findings,
    t.total_time_seconds,
    {{ as_text({{ products_of(s) }}) }} AS products,
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
    {{ is_full(l, m) }} AS is_full_scan,
    {{ as_text(CASE WHEN SUBSTR(m.branch, 1, 11) = 'refs/heads/' THEN SUBSTR(m.branch, 12) ELSE m.branch END) }}
        AS branch_name,
    {{ as_text({{ first_line(m.commit_title) }}) }} AS commit_title_line,
    c.week AS started_week,
    c.month AS started_month,
    {{ as_whole({{ findings_of(s, l, code) }}) }} AS findings_code,
    {{ as_whole({{ findings_of(s, l, supply_chain) }}) }} AS findings_supply_chain,
    {{ as_whole({{ findings_of(s, l, secrets) }}) }} AS findings_secrets,
    m.scan_environment,
    m.semgrep_version,
    t.engine_requested,
    {{ as_text(COALESCE(r.name, n.repository, m.repository)) }} AS repository_now
FROM scans s
LEFT JOIN scan_meta m ON m.deployment_id = s.deployment_id AND m.scan_id = s.scan_id
LEFT JOIN scan_stats t ON t.deployment_id = s.deployment_id AND t.scan_id = s.scan_id
LEFT JOIN scan_listings l ON l.deployment_id = s.deployment_id AND l.scan_id = s.scan_id
LEFT JOIN calendar c ON c.day = s.started_day
LEFT JOIN repositories r ON r.deployment_id = s.deployment_id AND r.repository_id = s.repository_id
LEFT JOIN repository_summaries n
    ON n.deployment_id = s.deployment_id AND n.repository_key = {{ id_key(s.repository_id) }}
