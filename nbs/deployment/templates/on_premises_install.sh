#!/bin/sh
# Installs a model as a prediction service, upgrades it, rolls it back and removes it. No network is used.
# shellcheck disable=SC2153,SC2154 # package.env and config are read at run time, and have variables in capitals
set -eu
umask 022

usage() {
    cat <<'TEXT'
Usage: sudo ./install.sh [install|upgrade|rollback|status|units|uninstall] [options]

  install, upgrade   install the release of this folder; an installation of the same name is upgraded
  rollback           restore the revision before the last upgrade, with the release that it was installed with
  status             what is installed and what is served; exit code 3 if nothing is
  units              write the systemd units to the folder --output, without installing anything
  uninstall          remove the installation; data and user stay, unless --purge is given

  --prefix FOLDER    default: /opt/mlcycle
  --name NAME        of the installation; default: the model
  --key KEY          public key of the maker, as text or as a PEM file; it is kept for upgrades
  --unsigned         install without verifying who made the release
  --host, --port     address; default: 127.0.0.1 and 8080
  --workers N        processes; default: 1
  --user USER        system user of the service; default: mlcycle; created if there is none
  --api-keys FILE    of hashed API keys (mlcycle key create); default: open to all who reach the port
  --allow ADDRESS    to which the service may connect, such as that of the prediction log; default: none
  --functions        trust the user functions of the release, whose code is executed
  --python PYTHON    interpreter; default: found by its version
  --timeout SECONDS  until the service must be ready; default: 120
  --no-systemd       install files only, for another supervisor; no root is needed
  --restart COMMAND  with --no-systemd: restarts the service after a change
  --output FOLDER    of the command units
  --keep-plan        rollback: keep the traffic plan that the revision had
  --purge            uninstall: remove data and user as well
TEXT
}

fail() { # What is wrong, what to do
    echo "Error: $1" >&2
    exit "${2:-1}"
}

say() { echo "$1"; }

parse() {
    command=install
    case ${1:-} in install | upgrade | rollback | status | units | uninstall) command=$1 && shift ;; esac
    while [ $# -gt 0 ]; do
        case $1 in
            --no-systemd) systemd=no ;;
            --unsigned) unsigned=yes ;;
            --functions) functions=yes ;;
            --purge) purge=yes ;;
            --keep-plan) keep_plan=yes ;;
            -h | --help) usage && exit 0 ;;
            --prefix | --name | --key | --host | --port | --workers | --user | --api-keys | --allow | --python | --timeout | \
                --restart | --output)
                [ $# -gt 1 ] || fail "The option $1 needs a value." 2
                variable=$(echo "${1#--}" | tr - _ | sed s,^restart$,restart_command,)
                # shellcheck disable=SC2034 # eval uses it
                value=$2
                eval "$variable=\$value"
                shift
                ;;
            *) fail "The option $1 is not known. See: $0 --help" 2 ;;
        esac
        shift
    done
}

check_option() { # Name, value, characters that are allowed
    case $2 in '' | -* | *[!$3]*) fail "The value '$2' of --$1 cannot be used. Expected are some of the characters $3" 2 ;; esac
}

read_package() { # What this folder installs
    [ -f "$here/package.env" ] || fail "There is no release beside $0. Run the install.sh of an unpacked archive." 2
    read_values "$here/package.env" RELEASE MODEL VERSION MACHINE PYTHON SIGNER ENVIRONMENT
    for value in "$RELEASE" "$MODEL" "$ENVIRONMENT"; do # Parts of paths
        case $value in '' | .* | -* | *[!a-zA-Z0-9_.-]*) fail "The archive is damaged: package.env is not as it was packed. \
Copy and unpack it again." 65 ;; esac
    done
}

read_values() { # File with lines NAME='value', names: sets these variables; nothing of the file is executed
    file=$1 && shift
    for variable in "$@"; do
        # shellcheck disable=SC2034 # eval uses it
        value=$(sed -n "s/^$variable='\([^']*\)'\$/\1/p" "$file" | head -n 1)
        eval "$variable=\$value"
    done
}

settle_options() { # Command line first, then what was installed, then defaults
    if [ -f "$here/../../config" ] && [ -e "$here/../../current" ]; then # This script is that of an installation
        placed=$(readlink -f -- "$here/../..")
        prefix=$(dirname -- "$placed") name=$(basename -- "$placed")
    fi
    name=${name:-${MODEL:-}}
    [ -n "$name" ] || fail "Name the installation: --name NAME" 2
    check_option name "$name" 'a-zA-Z0-9_.-'
    case $prefix in /*) ;; *) prefix=$(pwd)/$prefix ;; esac
    case $prefix in *[!a-zA-Z0-9_./-]*) fail "The prefix $prefix has characters that a unit cannot have." 2 ;; esac
    home=$prefix/$name
    SYSTEMD=yes HOST=127.0.0.1 PORT=8080 WORKERS=1 RUN_AS=mlcycle ALLOW='' FUNCTIONS=no UNSIGNED=no
    if [ -f "$home/config" ]; then read_values "$home/config" SYSTEMD HOST PORT WORKERS RUN_AS ALLOW FUNCTIONS UNSIGNED; fi
    systemd=${systemd:-$SYSTEMD} host=${host:-$HOST} port=${port:-$PORT} workers=${workers:-$WORKERS} user=${user:-$RUN_AS}
    allow=${allow:-$ALLOW} functions=${functions:-$FUNCTIONS} unsigned=${unsigned:-$UNSIGNED}
    check_option host "$host" 'a-zA-Z0-9.:_-'
    check_option user "$user" 'a-z0-9_-'
    check_option workers "$workers" 0-9
    check_option timeout "$timeout" 0-9
    check_option port "$port" 0-9
    if [ "$port" -lt 1 ] || [ "$port" -gt 65535 ]; then fail "The port $port does not exist. Expected is 1 to 65535." 2; fi
    if [ -n "$allow" ]; then check_option allow "$allow" 'a-fA-F0-9.:/ '; fi
    unit=mlcycle-$name
    state=/var/lib/$unit
    [ "$systemd" = yes ] || state=$home/state
}

check_rights() {
    if [ "$systemd" = yes ]; then
        [ "$(id -u)" = 0 ] || fail "Root is needed to install a service. Use sudo, or --no-systemd." 77
        [ -d "${MLCYCLE_UNIT_FOLDER:-/run/systemd/system}" ] || fail "systemd does not run here. Use --no-systemd." 69
    fi
    folder=$home
    while [ ! -e "$folder" ]; do folder=$(dirname -- "$folder"); done
    if [ ! -d "$folder" ] || [ ! -w "$folder" ]; then fail "The folder $folder cannot be written. Use sudo, or another --prefix." 77; fi
}

lock() {
    mkdir -p -- "$home" 2> /dev/null || fail "The folder $home cannot be written. Use sudo, or another --prefix." 77
    if command -v flock > /dev/null; then
        exec 9>> "$prefix/.lock"
        flock -n 9 || fail "Another install.sh works in $prefix (process $(cat "$prefix/.lock")). Wait until it has ended." 75
        echo $$ > "$prefix/.lock"
    fi
}

write_key() { # The public key as a PEM file
    case $key in
        *-----BEGIN*) printf '%s\n' "$key" ;;
        *.pem | *.pub) cat -- "$key" ;;
        *) printf -- '-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----\n' "$(printf %s "$key" | fold -w 64)" ;;
    esac > "$1" || fail "The key $key cannot be read. Expected is the text of a public key, or a PEM file." 2
}

verify_sums() { # Every file of the archive is as it was packed, and there is no other one
    (cd "$here" && sha256sum --check --strict --quiet SHA256SUMS > /dev/null 2>&1) || {
        damaged=$(cd "$here" && sha256sum --check --strict --quiet SHA256SUMS 2> /dev/null | sed -n '1s/: .*//p')
        fail "The archive is damaged: ${damaged:-SHA256SUMS} is not as it was packed. Copy and unpack it again." 65
    }
    sed 's/^[0-9a-f]*  //' "$here/SHA256SUMS" > "$work/names"
    added=$(cd "$here" && {
        find . ! -type d ! -type f # Links would be followed
        find . -type f ! -path ./SHA256SUMS ! -path ./SHA256SUMS.sig | sed 's|^\./||' | grep -vxFf "$work/names"
    } | head -n 1)
    [ -z "$added" ] || fail "The archive was altered: $added was added. Copy and unpack it again." 65
}

verify_signature() { # The hashes were signed by the maker
    if [ -z "$key" ] && [ -s "$home/trusted_keys" ]; then key=$(cat "$home/trusted_keys"); fi
    if [ -z "$key" ]; then
        [ "$unsigned" = yes ] && return
        fail "No key is trusted. ${SIGNER:+The release is signed with $SIGNER. }If its maker confirms the key, add --key KEY; \
--unsigned installs without verifying who made it." 77
    fi
    [ -f "$here/SHA256SUMS.sig" ] || fail "The archive is not signed, but a key was given. Get a signed one, or use --unsigned." 65
    command -v openssl > /dev/null || fail "openssl is not installed; it verifies the signature. Install it." 69
    write_key "$work/key.pem"
    openssl dgst -sha256 -verify "$work/key.pem" -signature "$here/SHA256SUMS.sig" "$here/SHA256SUMS" > /dev/null 2>&1 ||
        fail "The archive is not signed with the given key. Do not install it; contact its maker. Nothing was changed." 65
    key=$(sed '/-----/d' "$work/key.pem" | tr -d '\n')
}

check_machine() {
    machine=$(uname -m)
    [ "$machine" = "$MACHINE" ] || fail "This archive is for $MACHINE processors, this machine has $machine. Package the release on \
a machine of the same kind." 69
    seen=
    if [ -n "$python" ]; then set -- "$python"; else set -- "python$PYTHON" python3 python; fi
    for candidate in "$@"; do
        if ! found=$(command -v "$candidate" 2> /dev/null); then
            [ -z "$python" ] || seen=" There is no $candidate."
            continue
        fi
        if ! version=$("$found" -c 'import sys, venv; print("%d.%d" % sys.version_info[:2])' 2> /dev/null); then
            [ -z "$python" ] || seen=" $candidate is no Python, or has no module venv."
            continue
        fi
        if [ "$version" = "$PYTHON" ]; then
            interpreter=$("$found" -c 'import os, sys; print(os.path.realpath(sys.executable))')
            case $systemd$interpreter in yes/home/* | yes/root"/"*)
                fail "$interpreter is in a home folder, which the service cannot see. Name another: --python PYTHON" 69 ;;
            esac
            return
        fi
        seen="$seen $found is $version."
    done
    fail "Python $PYTHON is needed, with the module venv.${seen:- No Python was found.} Install it, or name it: --python PYTHON" 69
}

check_port() {
    if "$interpreter" - "$host" "$port" <<'CODE'; then return; fi
import socket, sys
family, kind, protocol, _, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_STREAM)[0]
taken = socket.socket(family, kind, protocol)
taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    taken.bind(address)
except OSError:
    sys.exit(1)
CODE
    fail "The address $host:$port cannot be used; another service may have it. Choose another: --port PORT" 69
}

make_user() {
    [ "$systemd" = yes ] || return 0
    if id "$user" > /dev/null 2>&1; then return; fi
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user" ||
        fail "The user $user cannot be created. Create it, or name another: --user USER"
    made_user=yes
}

build_environment() { # From the wheelhouse alone; kept if another release had the same requirements
    environment=$prefix/.environments/$ENVIRONMENT
    if [ -f "$environment/complete" ]; then return; fi
    rm -rf -- "$environment"
    mkdir -p -- "$prefix/.environments"
    made_environment=$environment
    pip=$(find "$here/wheelhouse" -name 'pip-*.whl')/pip # A wheel can be executed: the environment needs no pip
    "$interpreter" -m venv --without-pip "$environment" || fail "The virtual environment $environment cannot be made."
    (
        cd "$1"
        env -i PATH="$PATH" HOME="$work" TMPDIR="$work" PWD="$PWD" PIP_CONFIG_FILE=/dev/null \
            "$environment/bin/python" "$pip" install --isolated --quiet --no-index --no-cache-dir \
            --no-compile --disable-pip-version-check --root-user-action ignore --find-links "$here/wheelhouse" -r requirements.txt &&
            "$environment/bin/python" -m compileall -q -x '/tests?/' "$environment/lib" # The service may not write here
    ) > "$work/pip.log" 2>&1 || {
        tail -n 5 "$work/pip.log" >&2
        fail "The packages do not fit this machine, see above. Package the release on a machine of the same kind."
    }
    : > "$environment/complete"
}

place_release() {
    number=$(($(find "$home/revisions" -mindepth 1 -maxdepth 1 2> /dev/null | sed 's|.*/||; s/^0*//' | sort -n | tail -n 1) + 1))
    new=$home/revisions/$number
    mkdir -p -- "$new/releases"
    made_new=$new
    tar -xzf "$here/$RELEASE.tar.gz" -C "$new/releases" --no-same-owner --no-same-permissions
    [ -d "$new/releases/$RELEASE" ] || fail "The archive has no release $RELEASE. Package it again." 65
}

finish_release() {
    ln -s "../../../.environments/$ENVIRONMENT" "$new/venv"
    write_plan "$new" "$RELEASE"
    export MLCYCLE_TRUSTED_RELEASE_KEYS="$key"
    if ! "$environment/bin/python" -I - "$new/releases/$RELEASE" <<'CODE'; then
import sys, warnings
from pathlib import Path
from mlcycle.errors import MlcycleError
from mlcycle.service.bundle import verify_release
warnings.simplefilter("ignore")
try:
    verify_release(Path(sys.argv[1]))
except MlcycleError as error:
    sys.exit(f"Error: {error}")
CODE
        fail "The release cannot be verified. Nothing was changed." 65
    fi
    for file in install.sh README.md package.env on_premises.service on_premises.socket; do cp -- "$here/$file" "$new/$file"; done
    cp -- "$here/on_premises_serve.sh" "$new/serve" && chmod 755 "$new/serve"
    ln -s -f -n current/serve "$home/serve"
    mkdir -p -- "$new/units"
    write_units "$new/units"
}

write_plan() { # Folder of a revision, release
    trusted='[]'
    if [ "$functions" = yes ] && [ -f "$1/releases/$2/functions.py" ]; then trusted="[\"releases/$2/functions.py\"]"; fi
    printf '{"champion": "releases/%s", "functions": %s}\n' "$2" "$trusted" > "$1/traffic.json.new"
    mv -- "$1/traffic.json.new" "$1/traffic.json"
}

write_units() { # Folder
    credentials='# No API keys: open to all who reach the port' network='PrivateNetwork=true' allowed=''
    if [ -f "$home/api_keys" ] || [ -n "$api_keys" ]; then
        credentials="LoadCredential=api_keys:$home/api_keys\\nEnvironment=MLCYCLE_SERVICE_API_KEYS=%d/api_keys"
    fi
    if [ -n "$allow" ]; then network='# With --allow' allowed="IPAddressAllow=$allow"; fi
    case $host in *:*) listen="[$host]:$port" ;; *) listen=$host:$port ;; esac
    if [ "$host" = localhost ]; then listen=127.0.0.1:$port; fi
    for kind in service socket; do
        [ -f "$here/on_premises.$kind" ] || fail "There is no template $here/on_premises.$kind. Use the install.sh of an archive." 2
        sed -e "s|@NAME@|$name|g; s|@HOME@|$home|g; s|@USER@|$user|g; s|@LISTEN@|$listen|g" \
            -e "s|@CREDENTIALS@|$credentials|g; s|@NETWORK@|$network|g; s|@ALLOW@|$allowed|g" \
            "$here/on_premises.$kind" > "$1/$unit.$kind" || fail "The folder $1 cannot be written." 77
    done
}

write_settings() {
    cat > "$home/config.new" <<TEXT
SYSTEMD='$systemd'
HOST='$host'
PORT='$port'
WORKERS='$workers'
RUN_AS='$user'
ALLOW='$allow'
FUNCTIONS='$functions'
UNSIGNED='$unsigned'
TEXT
    if [ -f "$home/config" ]; then cp -- "$home/config" "$work/config"; fi
    mv -- "$home/config.new" "$home/config"
    if [ ! -e "$home/service.env" ]; then
        (umask 077 && cat > "$home/service.env") <<TEXT
# Secrets and settings of the service, NAME=value a line, without quotes. Restart the service after a change.
MLCYCLE_EVENTS_URL=sqlite:///$state/predictions.db
TEXT
    fi
    if [ -n "$api_keys" ]; then
        (umask 077 && cat -- "$api_keys" > "$home/api_keys.new") || fail "The file $api_keys cannot be read." 2
        mv -- "$home/api_keys.new" "$home/api_keys"
    fi
    if [ -n "$key" ]; then printf '%s\n' "$key" > "$home/trusted_keys"; fi
    if [ "$systemd" = no ]; then mkdir -p -- "$state" && chmod 700 "$state"; fi
}

wait_ready() { # Address of a file with it; process id or 0: until the service is ready
    "$environment/bin/python" -I - "$1" "$2" "$timeout" <<'CODE'
import os, sys, time, urllib.request
place, process, deadline = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
while time.monotonic() < deadline:
    try:
        url = place if place.startswith("http") else open(place).readline().strip()
        if process:
            os.kill(process, 0)
        if url and opener.open(url + "/health/ready", timeout=10).status == 200:
            sys.exit(0)
    except ProcessLookupError:
        break
    except OSError:
        pass
    time.sleep(0.1)
sys.exit(1)
CODE
}

check_start() { # Serves the new revision at a free port for a moment: what cannot start is never switched to
    : > "$work/address"
    (
        cd /
        exec > "$work/address" 2> "$work/check.log" < /dev/null 9>&-
        export MLCYCLE_START_CHECK=1
        set -- "$new/serve" --host 127.0.0.1 --port 0 --workers 1 --drain-seconds 0
        [ "$systemd" = no ] || exec setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups -- "$@"
        exec "$@"
    ) &
    checked=$!
    ready=no
    if wait_ready "$work/address" "$checked"; then ready=yes; fi
    kill -TERM "$checked" 2> /dev/null || true
    wait "$checked" 2> /dev/null || true
    checked=''
    [ "$ready" = yes ] || {
        tail -n 5 "$work/check.log" >&2
        fail "The release does not start on this machine, see above. Nothing was changed."
    }
}

point() { # Link, target: atomically
    ln -s -- "$2" "$home/.link.$$"
    mv -T -- "$home/.link.$$" "$home/$1"
}

revision_of() { readlink -- "$home/$1" 2> /dev/null || true; }

restart() { # Activates what `current` names; whether the service is ready afterwards
    if [ "$systemd" = yes ]; then
        changed=no
        cmp -s "$home/current/units/$unit.socket" "$unit_folder/$unit.socket" || changed=yes
        cp -- "$home/current/units/$unit.service" "$home/current/units/$unit.socket" "$unit_folder/" || return 1
        systemctl daemon-reload || return 1
        systemctl enable --quiet "$unit.socket" "$unit.service" || return 1
        if [ "$changed" = yes ]; then # Another address: the socket cannot stay open
            systemctl stop "$unit.service" 2> /dev/null || true
            systemctl restart "$unit.socket" || return 1
        fi
        systemctl restart "$unit.service" || return 1
    elif [ -s "$home/restart" ]; then
        sh -c "$(cat "$home/restart")" 9>&- || return 1
    else
        return 0
    fi
    case $host in 0.0.0.0 | ::) reached=127.0.0.1 ;; *:*) reached="[$host]" ;; *) reached=$host ;; esac
    wait_ready "http://$reached:$port" 0
}

record() { # What was done
    printf '%s\t%s\t%s\t%s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "${SUDO_USER:-$(id -un)}" "$1" "$2" >> "$home/history"
}

release_of() { sed -n "s/^RELEASE='\(.*\)'/\1/p" "$home/$1/package.env" 2> /dev/null || true; }

remove_old() { # Revisions other than the current and the previous one, and environments that neither uses
    for folder in "$home"/revisions/*; do
        case $folder in "$home/$(revision_of current)" | "$home/$(revision_of previous)") ;; *) rm -rf -- "$folder" ;; esac
    done
    for folder in "$prefix"/.environments/*; do
        used=no
        for link in "$prefix"/*/revisions/*/venv; do
            if [ "$(readlink -f -- "$link")" = "$(readlink -f -- "$folder")" ]; then used=yes; fi
        done
        [ "$used" = yes ] || rm -rf -- "$folder"
    done
    rmdir -- "$prefix/.environments" 2> /dev/null || true
}

clean_up() { # After an error or a signal: nothing half-installed remains
    code=$?
    trap - EXIT INT TERM HUP
    if [ -n "$checked" ]; then kill "$checked" 2> /dev/null || true; fi
    if [ "$finished" != yes ]; then
        [ -z "$made_new" ] || rm -rf -- "$made_new"
        [ -z "$made_environment" ] || rm -rf -- "$made_environment"
        if [ "$began" = yes ] && [ ! -e "$home/current" ]; then
            remove_parts
            if [ "$kept" = no ]; then rm -rf -- "$home"; fi
            rmdir -- "$prefix/.environments" 2> /dev/null || true
            if [ "$made_user" = yes ]; then userdel "$user" 2> /dev/null || true; fi
        elif [ -f "$work/config" ]; then
            cp -- "$work/config" "$home/config"
        fi
    fi
    rm -rf -- "$work"
    exit "$code"
}

do_install() {
    read_package
    settle_options
    check_rights
    verify_sums
    verify_signature
    check_machine
    previous=$(revision_of current)
    if [ -z "$previous" ]; then check_port; fi
    [ "$command" = install ] || [ -n "$previous" ] || fail "There is no installation $name in $prefix." 2
    if [ -e "$home" ]; then kept=yes; fi # Data of a previous installation
    lock
    if [ -z "$previous" ]; then began=yes; fi
    if [ "$systemd" = no ] && [ -n "$restart_command" ]; then printf '%s\n' "$restart_command" > "$home/restart"; fi
    say "Release $RELEASE: the archive is intact${key:+ and signed with the given key}."
    make_user
    place_release
    say "Building the environment from $(find "$here/wheelhouse" -name '*.whl' | wc -l) wheels…"
    build_environment "$new/releases/$RELEASE"
    write_settings
    finish_release
    say "Checking the service…"
    check_start
    switch_to "revisions/$number" "${previous:+upgrade}"
    if [ -z "$previous" ]; then
        say "Installed $RELEASE in $home."
    else
        say "Upgraded $home from $(release_of previous) to $RELEASE. Roll back: $home/current/install.sh rollback --prefix $prefix --name $name"
    fi
    if [ "$systemd" = yes ]; then
        say "It serves http://$host:$port (unit $unit.service)."
    elif [ -z "$previous" ]; then
        say "Start it: $home/serve"
    else
        say_restart
    fi
}

say_restart() { # Without systemd and without --restart, nobody else does it
    if [ "$systemd" = no ] && [ ! -s "$home/restart" ]; then
        say "A running process serves $(release_of previous) until it is restarted: $home/serve"
    fi
}

switch_to() { # Target of `current`, word for the history: waits until it is ready, otherwise restores the previous revision
    previous=$(revision_of current) older=$(revision_of previous)
    point current "$1"
    if [ -n "$previous" ]; then point previous "$previous"; fi
    if ! restart; then
        if [ -z "$previous" ]; then
            take_down
            rm -f -- "$home/current"
            fail "The service is not ready after $timeout s. Nothing is installed. Log: journalctl -u $unit"
        fi
        point current "$previous"
        if [ -f "$work/config" ]; then cp -- "$work/config" "$home/config"; fi
        if [ -n "$older" ]; then point previous "$older"; else rm -f -- "$home/previous"; fi
        record failed "$(sed -n "s/^RELEASE='\(.*\)'/\1/p" "$home/$1/package.env")"
        restart || echo "Error: the previous revision is not ready either. Log: journalctl -u $unit" >&2
        fail "The service is not ready after $timeout s; $(release_of current) serves again. Log: journalctl -u $unit"
    fi
    finished=yes
    record "${2:-install}" "$(release_of current)"
    remove_old
}

do_rollback() {
    settle_installed
    lock
    target=$(revision_of previous)
    [ -n "$target" ] || fail "There is no previous revision of $name." 2
    environment=$(readlink -f -- "$home/$target/venv")
    if [ "$keep_plan" = no ]; then write_plan "$home/$target" "$(release_of previous)"; fi
    switch_to "$target" rollback
    say "Rolled back from $(release_of previous) to $(release_of current)."
    say_restart
}

settle_installed() {
    if [ -f "$here/package.env" ]; then read_package; fi
    settle_options
    [ -e "$home/current" ] || fail "There is no installation $name in $prefix." 2
    check_rights
    environment=$(readlink -f -- "$home/current/venv")
}

served_release() { # Address: the champion by its release, from GET /model
    "$environment/bin/python" -I - "$1" <<'CODE'
import json, os, sys, urllib.request
opener, key = urllib.request.build_opener(urllib.request.ProxyHandler({})), os.environ.get("MLCYCLE_API_KEY", "")
request = urllib.request.Request(sys.argv[1] + "/model", headers={"Authorization": "Bearer " + key} if key else {})
try:
    print(json.load(opener.open(request, timeout=10))["release"]["name"])
except (OSError, ValueError, LookupError, TypeError):
    sys.exit(1)
CODE
}

say_served() { # Address: what the running process serves, and whether that is what the plan names
    planned=$(sed -n 's|.*"champion": *"releases/\([^"]*\)".*|\1|p' "$home/current/traffic.json")
    if ! served=$(served_release "$1"); then
        say "Served: unknown. GET /model needs an API key with the scope read: set MLCYCLE_API_KEY"
        return
    fi
    say "Served: $served"
    [ "$served" = "${planned%.tar.gz}" ] || say "Restart needed: the running process serves $served, installed is $planned."
}

do_status() {
    if [ -f "$here/package.env" ]; then read_package; fi
    settle_options
    [ -e "$home/current" ] || fail "There is no installation $name in $prefix." 2
    say "Installation: $home"
    say "Revision: $(basename -- "$(revision_of current)"), installed with $(release_of current)"
    say "Traffic plan: $(tr -s ' \n' ' ' < "$home/current/traffic.json")"
    say "Previous: $(release_of previous)"
    say "Environment: $(readlink -f -- "$home/current/venv")"
    environment=$(readlink -f -- "$home/current/venv")
    timeout=3
    case $host in 0.0.0.0 | ::) reached=127.0.0.1 ;; *:*) reached="[$host]" ;; *) reached=$host ;; esac
    if wait_ready "http://$reached:$port" 0; then
        say "Ready at http://$reached:$port"
        say_served "http://$reached:$port"
    else
        say "Not ready at http://$reached:$port"
        finished=yes
        exit 3
    fi
}

take_down() {
    [ "$systemd" = yes ] || return 0
    systemctl disable --quiet --now "$unit.socket" "$unit.service" 2> /dev/null || true
    rm -f -- "$unit_folder/$unit.service" "$unit_folder/$unit.socket"
    systemctl daemon-reload || true
}

remove_parts() { # All but data and secrets
    for part in current previous revisions serve config restart history trusted_keys; do
        rm -rf -- "${home:?}/$part"
    done
}

do_uninstall() {
    settle_installed
    take_down
    remove_parts
    remove_old
    if [ "$purge" = yes ]; then
        rm -rf -- "$home" "$state"
        if [ "$systemd" = yes ] && [ "$user" = mlcycle ] && ! ls "$prefix"/*/config > /dev/null 2>&1; then userdel "$user" || true; fi
        say "Removed $name with its data."
    else
        rmdir -- "$home" 2> /dev/null || true
        say "Removed $name. Its data stay in $state, its secrets in $home/service.env."
    fi
}

do_units() {
    read_package
    settle_options
    output=$(readlink -m -- "$output")
    if [ -f "$here/SHA256SUMS" ]; then # An archive, not an installation
        verify_sums
        case $output/ in "$here"/*) fail "Write the units outside of the archive, which would be altered: --output FOLDER" 2 ;; esac
    fi
    mkdir -p -- "$output" 2> /dev/null || fail "The folder $output cannot be written." 77
    write_units "$output"
    say "$output/$unit.service"
}

here=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")" && pwd)
prefix=/opt/mlcycle name='' key='' unsigned='' host='' port='' workers='' user='' api_keys='' allow='' functions='' python=''
timeout=120 systemd='' output=. purge=no keep_plan=no restart_command='' home='' checked='' finished=no began=no kept=no
made_new='' made_environment='' made_user='' unit_folder=${MLCYCLE_UNIT_FOLDER:-/etc/systemd/system}
parse "$@"
work=$(mktemp -d)
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
"do_$(echo "$command" | sed 's/upgrade/install/')"
finished=yes
