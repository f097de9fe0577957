"""${message.removesuffix(".")}."""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
from etl.transform.readers import boolean, flag, instant, integer, seconds, text, title
from migrations.columns import INSTANT, JSON, TEXT, add_column_from_extra, drop_column_into_extra

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
