SELECT
    x.deployment_id,
    x.newest_scan_at,
    x.newest_fetch_at,
    w.walked_at AS last_walk_at,
    w.complete_since,
    {{ as_whole((SELECT COUNT(*) FROM listing_gaps g WHERE g.deployment_id = x.deployment_id)) }} AS gaps,
    u.started_at AS last_run_started_at,
    u.finished_at AS last_run_finished_at,
    u.state AS last_run_state,
    u.exit_code AS last_run_exit_code,
    u.stop_reason AS last_run_stop_reason,
    (SELECT MAX(o.finished_at) FROM runs o WHERE o.exit_code = 0 AND o.state = 'ended') AS last_success_at,
    t.refreshed_at AS summaries_refreshed_at,
    (SELECT MIN(k.marked_at) FROM summary_marks k WHERE k.due_at <= {{ now() }}) AS summaries_behind_since
FROM (
    SELECT r.deployment_id, MAX(r.last_started_at) AS newest_scan_at, MAX(r.last_fetched_at) AS newest_fetch_at
    FROM repository_summaries r
    GROUP BY r.deployment_id
    UNION ALL
    SELECT d.deployment_id, NULL, NULL
    FROM deployments d
    WHERE NOT EXISTS (SELECT 1 FROM repository_summaries r WHERE r.deployment_id = d.deployment_id)
) x
LEFT JOIN watermarks w ON w.deployment_id = x.deployment_id
LEFT JOIN runs u ON u.run_id = (
    SELECT o.run_id FROM runs o WHERE o.state <> 'skipped' ORDER BY o.started_at DESC, o.run_id LIMIT 1
)
LEFT JOIN summary_state t ON t.id = 1
