"""The first three views for dashboards."""

from migrations.views import create_view, drop_view

revision = "0002"
down_revision = "0001"

VIEWS = ("bi_scan", "bi_scan_daily", "bi_coverage")


def upgrade() -> None:
    for view in VIEWS:
        create_view(view, 1)


def downgrade() -> None:
    for view in reversed(VIEWS):
        drop_view(view)
