SELECT
    x.deployment_id,
    d.slug,
    d.name,
    x.repositories,
    x.repositories_scanned,
    x.repositories_scanned_30_days,
    x.scans,
    x.failed,
    x.first_scan_at,
    x.last_scan_at,
    x.findings,
    x.findings_code,
    x.findings_supply_chain,
    x.findings_secrets
FROM (
    SELECT
        r.deployment_id,
        {{ as_whole(COUNT(CASE WHEN r.gone_at IS NULL THEN 1 END)) }} AS repositories,
        {{ as_whole(COUNT(CASE WHEN r.gone_at IS NULL AND r.scans > 0 THEN 1 END)) }} AS repositories_scanned,
        {{ as_whole(COUNT(CASE WHEN r.gone_at IS NULL AND r.days_since_last_scan < 30 THEN 1 END)) }}
            AS repositories_scanned_30_days,
        {{ as_whole(SUM(r.scans)) }} AS scans,
        {{ as_whole(SUM(r.failed)) }} AS failed,
        MIN(r.first_scan_at) AS first_scan_at,
        MAX(r.last_scan_at) AS last_scan_at,
        {{ as_whole(SUM(r.findings)) }} AS findings,
        {{ as_whole(SUM(r.findings_code)) }} AS findings_code,
        {{ as_whole(SUM(r.findings_supply_chain)) }} AS findings_supply_chain,
        {{ as_whole(SUM(r.findings_secrets)) }} AS findings_secrets
    FROM bi_repository r
    GROUP BY r.deployment_id
    UNION ALL
    SELECT d.deployment_id, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL
    FROM deployments d
    WHERE NOT EXISTS (SELECT 1 FROM repository_summaries r WHERE r.deployment_id = d.deployment_id)
) x
LEFT JOIN deployments d ON d.deployment_id = x.deployment_id
