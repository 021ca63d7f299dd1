#!/bin/sh
# Starts the service of this installation in the foreground. Further words are options of mlcycle-service, such as --port 0.
set -eu
revision=$(dirname -- "$(readlink -f -- "$0")")
home=$(dirname -- "$(dirname -- "$revision")")
# shellcheck source=/dev/null
. "$home/config"
if [ -z "${MLCYCLE_START_CHECK:-}" ] && [ -r "$home/service.env" ]; then # Under systemd, the unit reads it as root
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in [A-Z]*=*) export "${line?}" ;; esac
    done < "$home/service.env"
    if [ -r "$home/api_keys" ]; then export MLCYCLE_SERVICE_API_KEYS="${MLCYCLE_SERVICE_API_KEYS:-$home/api_keys}"; fi
fi
if [ -s "$home/trusted_keys" ]; then
    MLCYCLE_TRUSTED_RELEASE_KEYS=$(cat "$home/trusted_keys")
    export MLCYCLE_TRUSTED_RELEASE_KEYS
fi
exec "$revision/venv/bin/python" -I -c "from mlcycle.service.server import main; main()" \
    --traffic "$revision/traffic.json" --host "$HOST" --port "$PORT" --workers "$WORKERS" "$@"
