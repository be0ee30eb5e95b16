#!/usr/bin/env bash
# Run a command in the project's environment, with a Java 17 or newer where PATH or JAVA_HOME has none.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
venv="${VENV:-$root/.venv}"
export PATH="$venv/bin:$PATH" PYSPARK_PYTHON="${PYSPARK_PYTHON:-$venv/bin/python}"
version() { "$1" -version 2>&1 | sed -nE 's/.*version "(1\.)?([0-9]+).*/\2/p' | head -n 1; }
current="${JAVA_HOME:+$JAVA_HOME/bin/java}"
current="${current:-$(command -v java || true)}"
if [ -z "$current" ] || [ "$(version "$current")" -lt 17 ] 2>/dev/null; then
    for java in /usr/lib/jvm/*/bin/java; do
        if [ -x "$java" ] && [ "$(version "$java")" -ge 17 ] 2>/dev/null; then
            export JAVA_HOME="${java%/bin/java}" PATH="${java%/java}:$PATH"
            break
        fi
    done
fi
exec "$@"
