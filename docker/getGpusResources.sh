#!/usr/bin/env bash
# Spark's GPU discovery: print the addresses of this machine's GPUs as Spark expects them.
# spark.{driver,executor,worker}.resource.gpu.discoveryScript=/opt/wals_spark/docker/getGpusResources.sh
set -euo pipefail
addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -sd, -)
echo "{\"name\": \"gpu\", \"addresses\": [${addresses}]}"
