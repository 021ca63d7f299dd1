#!/bin/sh
# Starts the service of this installation in the foreground. Further words are options of mlcycle-service, such as --port 0.
set -eu
installation=$(dirname -- "$(readlink -f -- "$0")")
home=$(dirname -- "$(dirname -- "$installation")")
# shellcheck source=/dev/null
. "$home/config"
if [ -z "${MLCYCLE_TRIAL:-}" ] && [ -r "$home/service.env" ]; then # Under systemd only root can read it, and the unit has it
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in [A-Z]*=*) export "${line?}" ;; esac
    done < "$home/service.env"
    if [ -r "$home/api_keys" ]; then export MLCYCLE_SERVICE_API_KEYS="${MLCYCLE_SERVICE_API_KEYS:-$home/api_keys}"; fi
fi
if [ -s "$home/trusted_keys" ]; then
    MLCYCLE_TRUSTED_RELEASE_KEYS=$(cat "$home/trusted_keys")
    export MLCYCLE_TRUSTED_RELEASE_KEYS
fi
exec "$installation/venv/bin/python" -I -c "from mlcycle.service.server import main; main()" \
    --traffic "$installation/traffic.json" --host "$HOST" --port "$PORT" --workers "$WORKERS" "$@"
