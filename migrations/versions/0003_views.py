"""The views for dashboards."""

from migrations.views import create_view, drop_view

revision = "0003"
down_revision = "0002"

# Each after those that it reads.
VIEWS = (
    "bi_scan",
    "bi_scan_daily",
    "bi_coverage",
    "bi_day",
    "bi_scan_group_daily",
    "bi_author_daily",
    "bi_duration_weekly",
    "bi_duration_weekly_all",
    "bi_repository",
    "bi_deployment",
    "bi_stale",
    "bi_findings_weekly",
    "bi_freshness",
)


def upgrade() -> None:
    for view in VIEWS:
        create_view(view, 1)


def downgrade() -> None:
    for view in reversed(VIEWS):
        drop_view(view)
