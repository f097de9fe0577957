-- What became of each listed scan. A scan is in one state alone, so that the states add up to `listed`.
WITH seen AS (
    SELECT
        l.deployment_id,
        l.repository_id,
        l.scan_id,
        l.started_at,
        CASE WHEN s.scan_id IS NULL AND l.details_gone_at IS NOT NULL THEN 1 ELSE 0 END AS is_gone,
        CASE WHEN s.scan_id IS NOT NULL AND s.completed_at IS NULL THEN 1 ELSE 0 END AS has_no_end,
        CASE
            WHEN s.completed_at IS NOT NULL OR (s.scan_id IS NOT NULL AND q.scan_id IS NULL) THEN 'stored'
            WHEN l.dropped_at IS NOT NULL AND q.scan_id IS NULL AND d.scan_id IS NULL THEN 'dropped'
            WHEN l.expired_at IS NOT NULL THEN 'expired'
            WHEN q.scan_id IS NOT NULL THEN 'waiting'
            WHEN d.scan_id IS NOT NULL OR l.details_gone_at IS NOT NULL THEN 'dead'
            ELSE 'missing'
        END AS state
    FROM scan_listings l
    LEFT JOIN scans s ON s.deployment_id = l.deployment_id AND s.scan_id = l.scan_id
    LEFT JOIN fetch_queue q ON q.deployment_id = l.deployment_id AND q.scan_id = l.scan_id
    LEFT JOIN dead_letters d ON d.deployment_id = l.deployment_id AND d.scan_id = l.scan_id
    UNION ALL
    SELECT s.deployment_id, s.repository_id, s.scan_id, s.started_at, 0, 0, 'unlisted'
    FROM scans s
    LEFT JOIN scan_listings l ON l.deployment_id = s.deployment_id AND l.scan_id = s.scan_id
    WHERE l.scan_id IS NULL
)
SELECT
    {{ day(c.started_at) }} AS day,
    c.deployment_id,
    c.repository_id,
    COALESCE(MAX(r.name), MAX(m.repository)) AS repository,
    SUM(CASE WHEN c.state = 'unlisted' THEN 0 ELSE 1 END) AS listed,
    SUM(CASE WHEN c.state = 'stored' THEN 1 ELSE 0 END) AS stored,
    SUM(CASE WHEN c.state = 'waiting' THEN 1 ELSE 0 END) AS waiting,
    SUM(CASE WHEN c.state = 'dead' THEN 1 ELSE 0 END) AS dead,
    SUM(CASE WHEN c.state = 'expired' THEN 1 ELSE 0 END) AS expired,
    SUM(CASE WHEN c.state = 'dropped' THEN 1 ELSE 0 END) AS dropped,
    SUM(CASE WHEN c.state = 'missing' THEN 1 ELSE 0 END) AS missing,
    SUM(CASE WHEN c.state = 'stored' THEN c.has_no_end ELSE 0 END) AS stored_without_end,
    SUM(c.is_gone) AS details_gone,
    SUM(CASE WHEN c.state = 'unlisted' THEN 1 ELSE 0 END) AS stored_unlisted
FROM seen c
LEFT JOIN scan_meta m ON m.deployment_id = c.deployment_id AND m.scan_id = c.scan_id
LEFT JOIN repositories r ON r.deployment_id = c.deployment_id AND r.repository_id = c.repository_id
GROUP BY {{ day(c.started_at) }}, c.deployment_id, c.repository_id
