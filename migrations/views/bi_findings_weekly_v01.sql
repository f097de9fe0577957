-- What the newest full scan of each repository had found at the end of each week. What a full scan has found holds until
-- the week of the next one.
WITH
held AS (
    SELECT
        w.deployment_id,
        w.week,
        LEAD(w.week) OVER (PARTITION BY w.deployment_id, w.repository_key ORDER BY w.week) AS until_week,
        w.full_findings AS findings,
        w.full_findings_code AS code,
        w.full_findings_supply_chain AS supply_chain,
        w.full_findings_secrets AS secrets
    FROM scan_weeks w
    WHERE w.full_scan_id IS NOT NULL
),
together AS (
    SELECT
        deployment_id,
        week,
        until_week,
        COUNT(*) AS repositories,
        SUM(COALESCE(findings, 0)) AS findings,
        SUM(COALESCE(code, 0)) AS code,
        SUM(COALESCE(supply_chain, 0)) AS supply_chain,
        SUM(COALESCE(secrets, 0)) AS secrets
    FROM held
    GROUP BY deployment_id, week, until_week
)
SELECT
    d.week,
    t.deployment_id,
    {{ as_whole(SUM(t.repositories)) }} AS repositories,
    {{ as_whole(SUM(t.findings)) }} AS findings,
    {{ as_whole(SUM(t.code)) }} AS findings_code,
    {{ as_whole(SUM(t.supply_chain)) }} AS findings_supply_chain,
    {{ as_whole(SUM(t.secrets)) }} AS findings_secrets
FROM together t
JOIN calendar d ON d.weekday = 1 AND d.day >= t.week AND (d.day < t.until_week OR t.until_week IS NULL) AND d.day <= {{ today() }}
GROUP BY d.week, t.deployment_id
