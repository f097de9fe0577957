"""The variables that Kubernetes sets for each Service: for one named scan-etl-database, SCAN_ETL_DATABASE_PORT is
tcp://10.0.0.1:5432."""

import re

_SERVICE_LINK = re.compile(
    r"\w+_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes has set a variable of this name and value, and nobody a setting."""
    return bool(_SERVICE_LINK.fullmatch(name)) or (name.endswith("_PORT") and "://" in value)
