-- A row for each repository, be it listed, scanned or both.
SELECT
    r.deployment_id,
    r.repository_id,
    {{ as_text(COALESCE(a.name, r.repository)) }} AS repository,
    a.url,
    a.tags,
    a.default_branch,
    a.primary_branch,
    a.created_at,
    a.latest_scan_at,
    a.gone_at,
    r.first_started_at AS first_scan_at,
    r.last_started_at AS last_scan_at,
    {{ as_whole({{ days_since({{ day(r.last_started_at) }}) }}) }} AS days_since_last_scan,
    r.last_scan_id,
    r.last_outcome,
    r.last_exit_code,
    r.last_products AS products,
    r.last_semgrep_version AS semgrep_version,
    r.full_started_at AS last_full_scan_at,
    r.full_scan_id AS last_full_scan_id,
    r.full_findings AS findings,
    r.full_findings_code AS findings_code,
    r.full_findings_supply_chain AS findings_supply_chain,
    r.full_findings_secrets AS findings_secrets,
    r.scans,
    r.failed,
    {{ as_whole(COALESCE((
        SELECT SUM(x.scans) FROM scan_days x WHERE x.deployment_id = r.deployment_id
        AND x.repository_key = r.repository_key AND x.day > {{ days_ago(30) }}
    ), 0)) }} AS scans_30_days,
    {{ as_whole(COALESCE((
        SELECT SUM(x.failed) FROM scan_days x WHERE x.deployment_id = r.deployment_id
        AND x.repository_key = r.repository_key AND x.day > {{ days_ago(30) }}
    ), 0)) }} AS failed_30_days,
    {{ as_real(r.duration_seconds_total / NULLIF(r.timed, 0)) }} AS duration_seconds_average,
    r.duration_seconds_longest,
    r.last_fetched_at,
    r.last_code_day,
    r.last_supply_chain_day,
    r.last_secrets_day,
    r.last_ai_day
FROM repository_summaries r
LEFT JOIN repositories a ON a.deployment_id = r.deployment_id AND a.repository_id = r.repository_id
