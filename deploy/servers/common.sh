# shellcheck shell=bash disable=SC2154,SC2034 # the scripts that source this set the one, and use the other
# What the scripts of this folder share: each sources it, and says what its server is in these variables and functions.
#
#   server         its name, as in NAME.pom.xml, NAME-VERSION.sha256, .servers/NAME, and NAME_VERSION in capitals
#   version        the one to install
#   settings_file  the file, in the state of an instance, that its process is started with
#   other_ports    further ports that an instance holds: a file in its state for each, beside `port` that clients know
#                  (and those of `listen`, from --listen)
#   ready, taken   what its log says once it is ready, and where another program holds a port (patterns of grep)
#   settings       prints that file, with the lines of `extra` (KEY=VALUE, from --set)
#   prepare        makes what the process needs before it starts; what it prints goes into the log
#   serve          becomes the process (`exec setsid …`, so that a signal to the script does not reach it)
#   fetch, unpack  where it does not come as the jars of a POM: after this file is read, in place of those below
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)/.servers/$server"
java="${JAVA_HOME:+$JAVA_HOME/bin/}java"
start_seconds_max=60
stop_seconds_max=20
port_tries_max=5

fail() {
    echo "$server: $*" >&2
    exit 1
}

# Puts the files that `sums` names into `jars`: what the POM of the server asks for, unless the script says otherwise.
fetch() {
    mvn -q -B -f "$here/$server.pom.xml" \
        org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
        "-D$server.version=$version" -DincludeScope=runtime "-DoutputDirectory=$jars" >&2
}

# Makes of those files, once they are checked, what the server is started from: jars are that.
unpack() {
    :
}

install() {
    sums="$here/$server-$version.sha256" jars="$root/jars-$version"
    [ -f "$sums" ] || fail "version $version is not known: ${server^^}_VERSION is one of$(
        for known_sums in "$here/$server"-*.sha256; do
            known_version="${known_sums##*/"$server"-}" && printf ' %s' "${known_version%.sha256}"
        done
    )"
    mkdir -p "$root"
    # Closed again before anything runs in the background: a server that inherits the lock would hold it for good.
    exec {lock}>"$root/install.lock"
    flock "$lock"
    if ! cmp -s "$sums" "$jars/installed"; then
        command -v mvn >/dev/null || fail "Maven is missing: install it (Debian: apt-get install maven)"
        rm -rf "$jars"
        echo "$server: installing into $jars" >&2
        fetch
        (cd "$jars" && sha256sum --check --strict --quiet "$sums") >&2 ||
            fail "a file is not the one that $sums names: remove it from the Maven cache, and try again"
        [ "$(find "$jars" -type f | wc -l)" = "$(wc -l <"$sums")" ] ||
            fail "files came that $sums does not name: the versions of the POM and the list differ"
        unpack
        cp "$sums" "$jars/installed"
    fi
    exec {lock}>&-
}

# A port that nobody holds, below those that the system gives to outgoing connections: one of those could take it while
# the server is down between two starts.
free_port() {
    python3 -c '
import random, socket
while True:
    port = random.randrange(20000, 32000)
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            continue
    print(port)
    break'
}

# The process id, where it is alive and ours: ids are used again.
pid() {
    [ -f "$state/pid" ] && grep -qzF "$state/$settings_file" "/proc/$(cat "$state/pid")/cmdline" 2>/dev/null &&
        cat "$state/pid"
}

address() {
    pid >/dev/null || fail "$name does not run: start it with deploy/servers/$server start --name $name"
    [ -f "$state/${of:-port}" ] || fail "$name has no listener $of: start it with --listen $of"
    echo "127.0.0.1:$(cat "$state/${of:-port}")"
}

# Starts the process and waits until it says that it is ready; fails where it ends before or takes too long.
launch() {
    settings >"$state/$settings_file"
    prepare >"$state/server.log" 2>&1 || return 1
    serve </dev/null >"$state/server.log" 2>&1 &
    echo $! >"$state/pid"
    disown
    for _ in $(seq $((start_seconds_max * 10))); do
        grep -qs "$ready" "$state/server.log" && return 0
        kill -0 "$(cat "$state/pid")" 2>/dev/null || return 1
        sleep 0.1
    done
    kill -KILL "$(cat "$state/pid")" 2>/dev/null
    return 1
}

start() {
    version="$(cat "$state/version" 2>/dev/null || echo "$version")"
    install
    mkdir -p "$state"
    echo "$version" >"$state/version"
    if pid >/dev/null; then
        address
        return
    fi
    [ -z "$port" ] || echo "$port" >"$state/port"
    for _ in $(seq $port_tries_max); do
        for file in port "${other_ports[@]}" "${listen[@]}"; do
            [ -f "$state/$file" ] || free_port >"$state/$file"
        done
        if launch; then
            address
            return
        fi
        # Another program was quicker to take a port that we chose; one that holds data keeps the port its clients know.
        [ -z "$port$known" ] || break
        grep -qs "$taken" "$state/server.log" || break
        (cd "$state" && rm -rf port data "${other_ports[@]}" "${listen[@]}")
    done
    tail -n 20 "$state/server.log" >&2 || true
    fail "$name did not start: $state/server.log says why"
}

stop() {
    id="$(pid)" || return 0
    kill "-$1" "$id" 2>/dev/null || true
    for _ in $(seq $((stop_seconds_max * 10))); do
        kill -0 "$id" 2>/dev/null || return 0
        sleep 0.1
    done
    echo "$server: $name does not stop within $stop_seconds_max s: killed" >&2
    kill -KILL "$id" 2>/dev/null || true
}

# Beside a fresh server that goes away with the command, however it ends.
beside() {
    name="with.$$"
    state="$root/$name"
    trap 'stop KILL; rm -rf "$state"' EXIT
    trap 'exit 130' INT TERM
    address="$(start)"
    export "UNDERTONE_TEST_${server^^}=$address" "UNDERTONE_TEST_${server^^}_NAME=$name"
    "$@"
}

# The sub-commands that every server has; `help`, or one that is not known, prints the head of the script.
main() {
    [ $# -gt 0 ] || set -- help
    action="$1"
    shift
    name=default port="" known="" of="" extra=() listen=()
    case "$action" in
        install)
            install
            return
            ;;
        with)
            beside "$@"
            return
            ;;
    esac
    while [ $# -gt 0 ]; do
        [ $# -gt 1 ] || fail "$1 wants a value"
        case "$1" in
            --name) name="$2" ;;
            --port) port="$2" ;;
            --set) extra+=("$2") ;;
            --listen) listen+=("$2") ;;
            --of) of="$2" ;;
            *) fail "unknown argument: $1" ;;
        esac
        shift 2
    done
    case "$name" in jars-* | *[!a-zA-Z0-9_.-]* | "" | .*) fail "not a name for an instance: $name" ;; esac
    state="$root/$name"
    known="$(cat "$state/port" 2>/dev/null || true)"
    case "$action" in
        start) start ;;
        address) address ;;
        pid) pid || fail "$name does not run" ;;
        stop) stop TERM ;;
        kill) stop KILL ;;
        wipe) stop KILL && rm -rf "$state" ;;
        *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" ;;
    esac
}
