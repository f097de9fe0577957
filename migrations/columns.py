"""What a migration says of columns: their types on each dialect."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

INSTANT: Final = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")
TEXT: Final = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
JSON: Final = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
