#!/bin/sh
# Starts the gateway, in a container or by hand: ./start.sh [verb and flags of main.py]
# Uses .venv beside it where there is one, else the python on PATH; PYTHON names another.
set -eu
cd "$(dirname "$0")"

if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then
        PYTHON=.venv/bin/python
    else
        PYTHON=python3
    fi
fi

# What is kept in it, keys among them, is for this user alone.
# shellcheck disable=SC2174  # of that folder alone: those above it may be of others
mkdir -p -m 700 "${SWITCHYARD_DATA_DIR:-data}" 2>/dev/null || true

# A volume made by another user is the usual mistake; say it before a traceback would.
for folder in "${SWITCHYARD_MODELS_DIR:-models}" "${SWITCHYARD_LOGS_DIR:-logs}" "${SWITCHYARD_TMP_DIR:-tmp}" \
    "${SWITCHYARD_DATA_DIR:-data}"; do
    mkdir -p "$folder" 2>/dev/null || true
    if [ ! -d "$folder" ] || [ ! -w "$folder" ]; then
        echo "start.sh: $folder cannot be written by user $(id -u); give it to that user: chown -R $(id -u):$(id -g) $folder" >&2
        exit 1
    fi
done

exec "$PYTHON" main.py "$@"
