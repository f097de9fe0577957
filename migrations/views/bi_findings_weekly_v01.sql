-- What the newest full scan of each repository had found at the end of each week: the sum of what every full scan has
-- changed since the one before.
WITH
changes AS (
    SELECT
        w.deployment_id,
        w.week,
        CASE WHEN LAG(w.week) OVER repository IS NULL THEN 1 ELSE 0 END AS repositories,
        COALESCE(w.full_findings, 0) - COALESCE(LAG(w.full_findings) OVER repository, 0) AS findings,
        COALESCE(w.full_findings_code, 0) - COALESCE(LAG(w.full_findings_code) OVER repository, 0) AS code,
        COALESCE(w.full_findings_supply_chain, 0) - COALESCE(LAG(w.full_findings_supply_chain) OVER repository, 0)
            AS supply_chain,
        COALESCE(w.full_findings_secrets, 0) - COALESCE(LAG(w.full_findings_secrets) OVER repository, 0) AS secrets
    FROM scan_weeks w
    WHERE w.full_scan_id IS NOT NULL
    WINDOW repository AS (PARTITION BY w.deployment_id, w.repository_key ORDER BY w.week)
),
weekly AS (
    SELECT
        deployment_id,
        week,
        SUM(repositories) AS repositories,
        SUM(findings) AS findings,
        SUM(code) AS code,
        SUM(supply_chain) AS supply_chain,
        SUM(secrets) AS secrets
    FROM changes
    GROUP BY deployment_id, week
),
firsts AS (SELECT deployment_id, MIN(week) AS week FROM weekly GROUP BY deployment_id)
SELECT
    d.week,
    f.deployment_id,
    {{ as_whole(SUM(w.repositories) OVER deployment) }} AS repositories,
    {{ as_whole(SUM(w.findings) OVER deployment) }} AS findings,
    {{ as_whole(SUM(w.code) OVER deployment) }} AS findings_code,
    {{ as_whole(SUM(w.supply_chain) OVER deployment) }} AS findings_supply_chain,
    {{ as_whole(SUM(w.secrets) OVER deployment) }} AS findings_secrets
FROM firsts f
JOIN calendar d ON d.weekday = 1 AND d.day >= f.week AND d.day <= {{ today() }}
LEFT JOIN weekly w ON w.deployment_id = f.deployment_id AND w.week = d.day
WINDOW deployment AS (PARTITION BY f.deployment_id ORDER BY d.day)
