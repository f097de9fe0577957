-- A row for every repository of the data on every day of the data.
SELECT
    d.day,
    r.deployment_id,
    r.repository_id,
    {{ as_text(COALESCE(a.name, r.repository)) }} AS repository,
    {{ as_whole(COALESCE(x.scans, 0)) }} AS scans,
    {{ as_whole(COALESCE(x.passed, 0)) }} AS passed,
    {{ as_whole(COALESCE(x.with_findings, 0)) }} AS with_findings,
    {{ as_whole(COALESCE(x.failed, 0)) }} AS failed,
    {{ as_whole(COALESCE(x.running, 0)) }} AS running,
    {{ as_whole(COALESCE(x.findings, 0)) }} AS findings,
    {{ as_real(COALESCE(x.duration_seconds_total, 0)) }} AS duration_seconds_total,
    {{ as_real(x.duration_seconds_total / NULLIF(x.timed, 0)) }} AS duration_seconds_average,
    x.duration_seconds_longest,
    {{ as_whole(COALESCE(x.unknown, 0)) }} AS unknown,
    {{ as_whole(COALESCE(x.unfinished, 0)) }} AS unfinished,
    {{ as_whole(COALESCE(x.cancelled, 0)) }} AS cancelled,
    {{ as_whole(COALESCE(x.never_finished, 0)) }} AS never_finished,
    {{ as_whole(COALESCE(x.full_scans, 0)) }} AS full_scans,
    {{ as_whole(COALESCE(x.diff_scans, 0)) }} AS diff_scans,
    d.week,
    d.month,
    {{ as_whole(COALESCE(x.timed, 0)) }} AS timed
FROM calendar d
CROSS JOIN repository_summaries r
LEFT JOIN repositories a ON a.deployment_id = r.deployment_id AND a.repository_id = r.repository_id
{{ join_row_of_day(scan_days) }}
WHERE r.first_started_at IS NOT NULL
    AND d.day >= (SELECT {{ day(MIN(f.first_started_at)) }} FROM repository_summaries f)
    AND d.day <= (SELECT {{ day(MAX(f.last_started_at)) }} FROM repository_summaries f)
