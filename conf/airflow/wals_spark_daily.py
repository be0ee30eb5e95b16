"""A daily DAG: count the day's documents, then train on all batches and publish.

The day is both the batch and the run, so a retried or cleared task does the same work under the same names and
finds what is done already. Exit code 75 is worth a retry, 2 and 3 are not.
"""

from datetime import datetime, timedelta

from airflow import DAG
from airflow.models.baseoperator import chain
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

JOBS = "/opt/wals_spark/jobs"
CONFIG = "/opt/wals_spark/conf/pipeline.yaml"
DAY = ["--config", CONFIG, "--run-id", "{{ ds }}", "--batch-id", "{{ ds }}"]

with DAG(
    dag_id="wals_spark_daily",
    start_date=datetime(2026, 11, 1),
    schedule="@daily",
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    tasks = [
        SparkSubmitOperator(
            task_id=stage,
            application=f"{JOBS}/{stage}.py",
            application_args=[*DAY, *extra],
            conf={"spark.dynamicAllocation.enabled": "false"},
        )
        for stage, extra in [
            ("corpus", ["--set", "corpus.path=/data/notes/{{ ds }}/*.parquet"]),
            ("vocabulary", ["--set", "corpus.path=/data/notes/{{ ds }}/*.parquet"]),
            ("cooccurrence", ["--set", "corpus.path=/data/notes/{{ ds }}/*.parquet"]),
            ("train", ["--set", "train.batches=all"]),
            ("export", []),
            ("inject", []),
            ("verify", []),
            ("evaluate", []),
        ]
    ]
    chain(*tasks)
