SELECT
    c.started_day AS day,
    c.deployment_id,
    c.repository_id,
    {{ as_text(COALESCE(a.name, r.repository, c.repository)) }} AS repository,
    c.listed,
    c.stored,
    c.waiting,
    c.dead,
    c.expired,
    c.dropped,
    c.missing,
    c.stored_without_end,
    c.details_gone,
    c.stored_unlisted,
    {{ as_whole(c.listed - c.stored - c.waiting) }} AS lost,
    {{ as_real((c.listed - c.stored - c.waiting) * 100.0 / NULLIF(c.listed, 0)) }} AS lost_percent
FROM coverage_days c
LEFT JOIN repositories a ON a.deployment_id = c.deployment_id AND a.repository_id = c.repository_id
LEFT JOIN repository_summaries r ON r.deployment_id = c.deployment_id AND r.repository_key = c.repository_key
