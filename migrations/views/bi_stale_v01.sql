-- What is still there and was not scanned for seven days, or never.
SELECT
    r.deployment_id,
    r.repository_id,
    r.repository,
    r.tags,
    r.last_scan_at,
    r.days_since_last_scan,
    r.last_full_scan_at,
    r.findings
FROM bi_repository r
WHERE r.gone_at IS NULL AND (r.repository_id IS NOT NULL OR r.repository IS NOT NULL)
    AND (r.days_since_last_scan >= 7 OR r.last_scan_at IS NULL)
