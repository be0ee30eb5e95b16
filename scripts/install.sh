#!/usr/bin/env bash
# Create or reuse the virtual environment, install the package into it, and see to it that there is a Java.
#
#   scripts/install.sh [EXTRAS]        EXTRAS: a list such as dev or delta,benchmark
#
# Variables: VENV (default .venv), PYTHON (an interpreter of version 3.11 or newer), TORCH_INDEX_URL (a package
# index to take torch from, for a build without CUDA).
set -euo pipefail
cd "$(dirname "$0")/.."
extras="${1:-}"
venv="${VENV:-.venv}"

java_major() { # of the java given, 0 when it does not run
    local text
    text=$("$1" -version 2>&1) || { echo 0; return; }
    sed -nE 's/.*version "(1\.)?([0-9]+).*/\2/p' <<<"$text" | head -n 1 | grep . || echo 0
}

find_java() {
    local candidate
    for candidate in ${JAVA_HOME:+"$JAVA_HOME/bin/java"} "$(command -v java || true)" /usr/lib/jvm/*/bin/java; do
        if [ -n "$candidate" ] && [ -x "$candidate" ] && [ "$(java_major "$candidate")" -ge 17 ]; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

install_java() {
    if [ "$(uname -s)" = Linux ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        echo "No Java 17 or newer found: installing a headless runtime with apt-get (as root)."
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless ||
            apt-get install -y -qq --no-install-recommends default-jre-headless
        find_java >/dev/null && return 0
    fi
    {
        echo "Spark needs Java 17 or newer, and none was found on PATH, in JAVA_HOME or below /usr/lib/jvm."
        echo "Install one and run the same command again:"
        if [ "$(uname -s)" = Darwin ]; then
            echo "    brew install openjdk@17 && export JAVA_HOME=\"\$(brew --prefix openjdk@17)/libexec/openjdk.jdk/Contents/Home\""
        elif command -v apt-get >/dev/null; then
            echo "    sudo apt-get update && sudo apt-get install -y openjdk-17-jre-headless"
        elif command -v dnf >/dev/null; then
            echo "    sudo dnf install -y java-17-openjdk-headless"
        elif command -v zypper >/dev/null; then
            echo "    sudo zypper install -y java-17-openjdk-headless"
        elif command -v pacman >/dev/null; then
            echo "    sudo pacman -S --needed jre17-openjdk-headless"
        elif command -v apk >/dev/null; then
            echo "    sudo apk add openjdk17-jre-headless"
        else
            echo "    a Java 17 runtime from your system's packages or from any OpenJDK vendor, with JAVA_HOME set to it"
        fi
    } >&2
    return 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "wals_spark needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
    return 1
}

find_java >/dev/null || install_java

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    echo "Creating $venv with $("$python" --version)"
    "$python" -m venv "$venv" || {
        rm -rf "$venv"
        echo "This Python cannot create virtual environments; on Debian or Ubuntu: apt-get install -y python3-venv" >&2
        exit 1
    }
    "$venv/bin/python" -m pip install --quiet --upgrade pip
fi

stamp="$venv/.installed${extras:+-${extras//,/-}}"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ] || [ scripts/install.sh -nt "$stamp" ]; then
    echo "Installing wals_spark${extras:+ with $extras} into $venv (the Linux build of torch brings CUDA: 6.6 GB, about a minute or two)"
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        "$venv/bin/python" -m pip install --quiet --index-url "$TORCH_INDEX_URL" torch
        # A build from another index has a local version, such as 2.15.0+cpu: its pin must allow that.
        "$venv/bin/python" -m pip install --quiet -c <(grep -viE '^(torch|nvidia-.*|cuda-.*|triton)==' constraints.txt) -e ".${extras:+[$extras]}"
    else
        "$venv/bin/python" -m pip install --quiet -c constraints.txt -e ".${extras:+[$extras]}"
    fi
    touch "$stamp"
fi
