"""The nightly sync as an Airflow 3 DAG: copy this file into the folder of your DAGs. See docs/deploy.md.

It asks of a worker what cron asks of a machine: the command in /opt/scan-etl, its settings and the token in
/etc/scan-etl. So no secret passes through Airflow, its database or its logs.

    sync          retried: it goes on where it stopped. Exit code 1 isn't a failure here, so what comes after it runs
    dead_letters  fails, without a retry, if a pair was given up within the last day
"""

import json
from datetime import timedelta

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

SYNC = (
    "/opt/scan-etl/bin/scan-etl sync --single --deadline 4h --json --config /etc/scan-etl/config.toml"
    # A retry after 1 would be green, for nothing is left to do, and a red task would hold up what comes after it.
    " || { code=$?; [ $code = 1 ] || exit $code; }"
)
DEAD_LETTERS = "/opt/scan-etl/bin/scan-etl failures list --newer-than 1d --json --config /etc/scan-etl/config.toml"


def refuse_dead_letters(output: str) -> int:
    """Fail, for good, with the number and the newest of the dead letters in what `failures list` printed."""
    letters = json.loads(output)["dead_letters"]
    if letters:
        newest = letters[0]
        pair = f"{newest['deployment_id']}/{newest['scan_id']}"
        raise AirflowFailException(f"{len(letters)} dead letters (100 are listed at most); {pair}: {newest['error']}")
    return 0


with DAG(
    dag_id="scan_etl",
    description="Fetch what is new among the Semgrep scans",
    schedule="17 2 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    # Neither is of use: a sync asks for everything since the last one.
    catchup=False,
    max_active_runs=1,
    default_args={"retry_delay": timedelta(minutes=10)},
    tags=["semgrep"],
):
    sync = BashOperator(
        task_id="sync",
        bash_command=SYNC,
        env={"SEMGREP_APP_TOKEN_FILE": "/etc/scan-etl/token"},
        # The last line is the summary: it becomes the task's XCom.
        output_processor=json.loads,
        retries=2,
        # Past --deadline the sync ends by itself; this is for one that hangs.
        execution_timeout=timedelta(hours=5),
    )
    dead_letters = BashOperator(
        task_id="dead_letters", bash_command=DEAD_LETTERS, env={}, output_processor=refuse_dead_letters, retries=0
    )
    sync >> dead_letters
