-- How each repository stands: a row for each that isn't gone.
select
    r.deployment_id,
    r.repository_id,
    r.repository,
    coalesce(d.name, d.slug, 'deployment ' || r.deployment_id) as deployment,
    r.last_scan_at,
    r.last_scan_at is null or r.days_since_last_scan >= {{ var('scan_etl_stale_days') }} as is_stale,
    r.scans_30_days,
    r.failed_30_days,
    r.failed_30_days * 100.0::double precision / nullif(r.scans_30_days, 0) as failed_30_days_percent,
    r.findings
from {{ source('scan_etl', 'bi_repository') }} as r
join {{ source('scan_etl', 'bi_deployment') }} as d using (deployment_id)
where r.gone_at is null
