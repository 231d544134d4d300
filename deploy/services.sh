#!/usr/bin/env bash
# Makes PostgreSQL (15 or later) and RabbitMQ (3.10 or later) available, each on its own:
#
#   1. DATABASE_URL / AMQP_URL, when set, is used and checked, and nothing else is touched;
#   2. else what answers on the standard port of this machine;
#   3. else Docker Compose, where an engine runs (deploy/compose.yaml);
#   4. else, on Debian or Ubuntu as root or with passwordless sudo, the distribution's packages,
#      started directly: neither systemd nor a permissive policy-rc.d is needed;
#   5. else it says what to install.
#
#   eval "$(deploy/services.sh)"   stdout carries nothing but export lines, everything else is on stderr
#   deploy/services.sh stop        stops what this script started, and nothing else
#
# It may be run again at any time. It creates the role and the database `switchboard` when they are missing and
# changes nothing that was there before. The ports can be moved with SERVICES_POSTGRES_PORT and
# SERVICES_RABBITMQ_PORT. Written for bash 3.2, so that it also runs on macOS.
set -euo pipefail

readonly PG_MIN=15 RMQ_MIN_MAJOR=3 RMQ_MIN_MINOR=10
readonly PG_LOCAL_PORT="${SERVICES_POSTGRES_PORT:-5432}"
readonly RMQ_LOCAL_PORT="${SERVICES_RABBITMQ_PORT:-5672}"
readonly ROLE=switchboard DATABASE=switchboard PASSWORD=switchboard
readonly READY_WITHIN=60

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
state_dir="${XDG_STATE_HOME:-${HOME:-/tmp}/.local/state}/switchboard"
state="$state_dir/services"
export PGCONNECT_TIMEOUT=5

say() { printf 'services: %s\n' "$*" >&2; }
die() {
    printf 'services: error: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command with a time limit where the machine has a tool for it.
limited() {
    if have timeout; then timeout "$@"; elif have gtimeout; then gtimeout "$@"; else shift && "$@"; fi
}

as_root=()
can_be_root() {
    if [ "$(id -u)" = 0 ]; then return 0; fi
    if have sudo && sudo -n true 2>/dev/null; then as_root=(sudo -n) && return 0; fi
    return 1
}
# The odd expansion keeps an empty array legal under `set -u` in old shells.
root() { ${as_root[@]+"${as_root[@]}"} "$@"; }

docker_works() { have docker && limited 10 docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; }
compose() { docker compose -f "$here/compose.yaml" "$@"; }
compose_runs() { docker_works && [ -n "$(compose ps --status running -q "$1" 2>/dev/null)" ]; }

# ---- what this script has started ---------------------------------------------------------------------------------

boot_id() { cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown; }
remember() { # service, how, arguments; the boot and the process tell it from one that somebody else started later
    mkdir -p "$state_dir"
    forget "$1"
    echo "$* boot=$(boot_id)" >>"$state"
}
forget() {
    if [ -f "$state" ]; then
        grep -v "^$1 " "$state" >"$state.new" || true
        mv "$state.new" "$state"
    fi
}

stop_services() {
    if [ ! -s "$state" ]; then
        say "nothing to stop: this script has started nothing that still runs"
        return 0
    fi
    can_be_root || true
    local service how a b boot
    while read -r service how a b boot; do
        if [ "$boot" != "boot=$(boot_id)" ]; then
            say "$service: not stopped, the machine has been restarted since"
        elif [ "$how" = compose ]; then
            say "$service: stopping the container (its volume is kept)"
            compose stop "$service" >&2
        elif [ "$service" = postgres ] && [ "$b" != "$(pg_pid "${a%/*}" "${a#*/}")" ]; then
            say "postgres: not stopped, it has been restarted by somebody else"
        elif [ "$service" = postgres ]; then
            say "postgres: stopping cluster $a"
            root pg_ctlcluster ${skip_systemd[@]+"${skip_systemd[@]}"} "${a%/*}" "${a#*/}" stop -m fast >&2 </dev/null
        elif [ "$b" != "$(rmq_pid)" ]; then
            say "rabbitmq: not stopped, it has been restarted by somebody else"
        elif [ "$how" = systemctl ]; then
            say "rabbitmq: stopping"
            root systemctl stop rabbitmq-server >&2 </dev/null
        else
            say "rabbitmq: stopping node $a"
            rabbitmq_env "$a"
            root env ${rmq_env[@]+"${rmq_env[@]}"} rabbitmqctl -q stop >&2 </dev/null
        fi
    done <"$state"
    rm -f "$state"
}

# ---- URLs -----------------------------------------------------------------------------------------------------------

unescape() { # percent-decoding; a backslash is kept as it is
    local s="${1//\\/\\\\}"
    printf '%b' "${s//%/\\x}" 2>/dev/null
}
# Splits scheme://user:password@host:port/path?query into url_* variables.
split_url() {
    local re='^([a-z]+)://(([^:@/]*)(:([^@/]*))?@)?(\[[^]]+\]|[^]:/?@[]*)(:([0-9]+))?(/([^?]*))?(\?.*)?$'
    [[ $1 =~ $re ]] || return 1
    url_scheme="${BASH_REMATCH[1]}" url_user="$(unescape "${BASH_REMATCH[3]}")" url_password="$(unescape "${BASH_REMATCH[5]}")"
    url_raw_user="${BASH_REMATCH[3]}" url_host="${BASH_REMATCH[6]}" url_port="${BASH_REMATCH[8]}"
    url_slash="${BASH_REMATCH[9]:+/}" url_path="${BASH_REMATCH[10]}" url_query="${BASH_REMATCH[11]}"
}

# ---- PostgreSQL -----------------------------------------------------------------------------------------------------

# What listens there: `postgres`, `nothing`, or `other`. An SSLRequest is answered by every PostgreSQL, one byte long,
# before any authentication.
pg_probe() { # host, port
    # shellcheck disable=SC2016 # expanded by the inner shell
    limited 5 bash -c '
        { exec 3<>"/dev/tcp/$1/$2"; } 2>/dev/null || { echo nothing; exit; }
        printf "\x00\x00\x00\x08\x04\xd2\x16\x2f" >&3
        IFS= read -r -t 3 -n 1 -u 3 answer || true
        case "$answer" in S | N) echo postgres ;; *) echo other ;; esac
    ' probe "$1" "$2" 2>/dev/null || echo nothing
}

# Runs psql against a URL; the password goes through the environment, so that it is in no process list.
pg_query() { # url, psql arguments
    split_url "$1" || return 2
    shift
    local where="$url_scheme://${url_raw_user:+$url_raw_user@}$url_host${url_port:+:$url_port}$url_slash${url_path}$url_query"
    if [ -n "$url_password" ]; then
        PGPASSWORD="$url_password" psql -wXAtq -v ON_ERROR_STOP=1 "$where" "$@" </dev/null
    else
        psql -wXAtq -v ON_ERROR_STOP=1 "$where" "$@" </dev/null
    fi
}

pg_version_ok() { # server_version_num, where
    [ "$1" -ge $((PG_MIN * 10000)) ] ||
        die "PostgreSQL $(($1 / 10000)) at $2 is too old: $PG_MIN or later is needed; set DATABASE_URL to a newer one"
}

check_database_url() {
    local hint="correct DATABASE_URL (postgres://user:password@host:port/database), or unset it to have a local PostgreSQL started"
    split_url "$DATABASE_URL" || die "DATABASE_URL is not a URL: $hint"
    case "$url_scheme" in
        postgres | postgresql) ;;
        *) die "DATABASE_URL has the scheme '$url_scheme', not postgres://: $hint" ;;
    esac
    local where="${url_host:-the local socket}${url_port:+:$url_port}, database '${url_path}'"
    if [ -n "$url_host" ]; then
        case "$(pg_probe "$url_host" "${url_port:-5432}")" in
            nothing) die "DATABASE_URL: nothing answers at ${url_host}:${url_port:-5432}: $hint" ;;
            other) die "DATABASE_URL: what answers at ${url_host}:${url_port:-5432} is not PostgreSQL: $hint" ;;
        esac
    fi
    if ! have psql; then
        say "PostgreSQL answers at DATABASE_URL ($where); without psql neither login nor version is checked"
        return
    fi
    local out
    if ! out="$(pg_query "$DATABASE_URL" -F ' ' -c "select current_setting('server_version_num'), current_setting('server_version'),
            (select (rolsuper or rolbypassrls)::text from pg_roles where rolname = current_user)" 2>&1)"; then
        die "DATABASE_URL does not work ($where): $(one_line "$out"); $hint"
    fi
    local num version super
    num="${out%% *}" super="${out##* }" version="${out#* }"
    pg_version_ok "$num" "DATABASE_URL ($where)"
    [ "$super" = false ] || say "warning: the role of DATABASE_URL bypasses row-level security; a role of its own is safer"
    say "PostgreSQL ${version%% *} answers at DATABASE_URL ($where)"
}

# What psql complains about, without its preamble.
one_line() { printf '%s' "$1" | sed -e 's/^psql: error: //' -e 's/^connection to server .* failed: //' | head -n 1; }

pg_own_url() { echo "postgres://$ROLE:$PASSWORD@127.0.0.1:$pg_port/$DATABASE"; }

# Finds a way to be the server's administrator: sets admin_psql to a command that reads SQL from stdin.
find_pg_admin() {
    local flags=(-wXAtq -v ON_ERROR_STOP=1 -d postgres)
    if have psql; then
        admin_psql=(psql "${flags[@]}" -h 127.0.0.1 -p "$pg_port" -U postgres)
        is_pg_admin && return 0
        if [ "$(id -u)" = 0 ] && id postgres >/dev/null 2>&1; then
            admin_psql=(su postgres -s /bin/sh -c "psql ${flags[*]} -p $pg_port")
            is_pg_admin && return 0
        elif have sudo && sudo -n -u postgres true 2>/dev/null; then
            admin_psql=(sudo -n -u postgres psql "${flags[@]}" -p "$pg_port")
            is_pg_admin && return 0
        fi
        # PGUSER, PGPASSWORD and ~/.pgpass, or the login name as Homebrew sets it up.
        admin_psql=(psql "${flags[@]}" -h 127.0.0.1 -p "$pg_port")
        is_pg_admin && return 0
    fi
    if compose_runs postgres; then
        admin_psql=(docker compose -f "$here/compose.yaml" exec -T postgres psql "${flags[@]}" -U postgres)
        is_pg_admin && return 0
    fi
    return 1
}
is_pg_admin() {
    local out
    # From a directory that the postgres user may enter, or psql complains.
    out="$(cd / && echo "select rolsuper or (rolcreaterole and rolcreatedb) from pg_roles where rolname = current_user" |
        "${admin_psql[@]}" 2>/dev/null)" && [ "$out" = t ]
}
admin_sql() { (cd / && "${admin_psql[@]}"); }

# The server on pg_port answers; sees to the role and the database and sets DATABASE_URL.
prepare_postgres() {
    local num own out deadline=$((SECONDS + READY_WITHIN))
    own="$(pg_own_url)"
    # While a server recovers it answers the probe already, but takes no sessions.
    if have psql; then
        while out="$(pg_query "$own" -c 'select 1' 2>&1)" || true; [[ $out == *"starting up"* || $out == *"recovery"* ]]; do
            [ "$SECONDS" -lt "$deadline" ] || die "PostgreSQL on port $pg_port is still starting after $READY_WITHIN s: see its log"
            sleep 0.2
        done
        if [ "$out" = 1 ]; then
            pg_version_ok "$(pg_query "$own" -c 'show server_version_num')" "127.0.0.1:$pg_port"
            check_own_role "$(pg_query "$own" -F ' ' -c "select rolsuper or rolbypassrls, rolcreaterole and rolcreatedb
                from pg_roles where rolname = current_user")"
            say "PostgreSQL $(pg_query "$own" -c 'show server_version' | cut -d' ' -f1) is ready on 127.0.0.1:$pg_port"
            DATABASE_URL="$own"
            return
        fi
    fi
    find_pg_admin || die "PostgreSQL answers on 127.0.0.1:$pg_port, but neither '$ROLE' nor an administrator can log in (${out:+$(one_line "$out")});" \
        "set DATABASE_URL=postgres://user:password@127.0.0.1:$pg_port/database, or PGUSER and PGPASSWORD of an administrator"
    num="$(echo 'show server_version_num' | admin_sql)"
    pg_version_ok "$num" "127.0.0.1:$pg_port"
    if [ "$(echo "select count(*) from pg_roles where rolname = '$ROLE'" | admin_sql)" = 0 ]; then
        echo "create role $ROLE login createrole createdb nosuperuser nobypassrls password '$PASSWORD'" | admin_sql >&2
        say "created the role '$ROLE'"
    fi
    if [ "$(echo "select count(*) from pg_database where datname = '$DATABASE'" | admin_sql)" = 0 ]; then
        # template0 and an explicit encoding, because a cluster made without a locale is SQL_ASCII. An administrator
        # who is no superuser must be a member of the role that is to own the database.
        local utf8="encoding 'UTF8' template template0"
        echo "grant $ROLE to current_user" | admin_sql >/dev/null 2>&1 || true
        echo "create database $DATABASE owner $ROLE $utf8 locale 'C.UTF-8'" | admin_sql >/dev/null 2>&1 ||
            echo "create database $DATABASE owner $ROLE $utf8 locale 'C'" | admin_sql >&2
        say "created the database '$DATABASE'"
    fi
    check_own_role "$(echo "select rolsuper or rolbypassrls, rolcreaterole and rolcreatedb from pg_roles where rolname = '$ROLE'" |
        admin_sql | tr '|' ' ')"
    if have psql && ! out="$(pg_query "$own" -c 'select 1' 2>&1)"; then
        die "the role '$ROLE' was there before and does not accept this script's password: set DATABASE_URL=postgres://$ROLE:…@127.0.0.1:$pg_port/$DATABASE ($(one_line "$out"))"
    fi
    say "PostgreSQL $((num / 10000)).$((num % 10000)) is ready on 127.0.0.1:$pg_port"
    DATABASE_URL="$own"
}
check_own_role() { # "<bypasses> <may create>"
    case "$1" in
        "f t") ;;
        t*) die "the role '$ROLE' bypasses row-level security: run ALTER ROLE $ROLE NOSUPERUSER NOBYPASSRLS, or set DATABASE_URL" ;;
        *) die "the role '$ROLE' may not create roles and databases: run ALTER ROLE $ROLE CREATEROLE CREATEDB, or set DATABASE_URL" ;;
    esac
}

# Debian's clusters: prints "version name port status", the best one first: new enough, running, newest.
pg_clusters() {
    pg_lsclusters -h 2>/dev/null | awk -v min="$PG_MIN" '$1 + 0 >= min { print ($4 ~ /^online/ ? 0 : 1), $1, $2, $3, $4 }' |
        sort -k1,1n -k2,2nr | cut -d' ' -f2-
}
pg_pid() { # version, name
    local data
    data="$(pg_lsclusters -h | awk -v v="$1" -v n="$2" '$1 == v && $2 == n { print $6 }')"
    root head -n 1 "$data/postmaster.pid" 2>/dev/null || true
}
start_debian_postgres() {
    local version name port status
    if [ -z "$(pg_clusters)" ]; then
        version="$(find /usr/lib/postgresql -mindepth 1 -maxdepth 1 -exec basename {} \; 2>/dev/null | sort -nr | head -n 1)"
        [ "${version%%.*}" -ge "$PG_MIN" ] || die "the installed PostgreSQL ${version:-} is too old: install postgresql-$PG_MIN or later (https://www.postgresql.org/download/linux/)"
        root pg_createcluster --locale C.UTF-8 --encoding UTF8 "$version" main >&2 </dev/null
        say "created the cluster $version/main"
    fi
    read -r version name port status <<<"$(pg_clusters)"
    pg_port="$port"
    [[ $status != online* ]] || return 0
    [ "$(pg_probe 127.0.0.1 "$port")" = nothing ] || die "port $port of the PostgreSQL cluster $version/$name is taken by another program: stop it, or set DATABASE_URL"
    say "starting the PostgreSQL cluster $version/$name"
    root pg_ctlcluster ${skip_systemd[@]+"${skip_systemd[@]}"} "$version" "$name" start >&2 </dev/null ||
        die "the PostgreSQL cluster $version/$name does not start: see /var/log/postgresql/postgresql-$version-$name.log"
    remember postgres cluster "$version/$name" "$(pg_pid "$version" "$name")"
}

# ---- RabbitMQ -------------------------------------------------------------------------------------------------------

# Logs in as far as an open virtual host, in the bytes of AMQP 0-9-1. Prints one line: `ok <version>`, `nothing` (no
# listener), `other` (not a broker), `old <version>`, `login` (refused), or `vhost` (not there, or not for this user).
amqp_probe() { # host, port, user, password, virtual host
    # shellcheck disable=SC2016 # expanded by the inner shell
    AMQP_USER="$3" AMQP_PASSWORD="$4" AMQP_VHOST="$5" limited 15 bash -c '
        { exec 3<>"/dev/tcp/$1/$2"; } 2>/dev/null || { echo nothing; exit; }
        hex() { od -An -v -tx1 | tr -d " \n"; }
        text() { printf %s "$1" | hex; }
        number() { printf "%0$1x" "$2"; }
        send() { printf "$(sed "s/../\\\\x&/g" <<<"010000$(number 8 $((${#1} / 2)))$1ce")" >&3; }
        receive() {
            local kind head
            LC_ALL=C IFS= read -r -t "$1" -n 1 -u 3 kind && [[ $kind == $(printf "\x01") ]] || return 1
            head="$(dd bs=1 count=6 2>/dev/null <&3 | hex)"
            [[ $head == 0000* ]] || return 1
            frame="$(dd bs=1 count=$((16#${head:4:8} + 1)) 2>/dev/null <&3 | hex)"
        }
        trap "" PIPE
        printf "AMQP\x00\x00\x09\x01" >&3
        receive 3 && [[ $frame == 000a000a* ]] || { echo other; exit; }
        version=0.0.0
        if [[ $frame =~ 0776657273696f6e53([0-9a-f]{8})([0-9a-f]*) ]]; then
            value="${BASH_REMATCH[2]:0:$((16#${BASH_REMATCH[1]} * 2))}"
            version="$(printf "$(sed "s/../\\\\x&/g" <<<"$value")")"
        fi
        plain="00$(text "$AMQP_USER")00$(text "$AMQP_PASSWORD")"
        send "000a000b0000000005$(text PLAIN)$(number 8 $((${#plain} / 2)))${plain}05$(text en_US)" 2>/dev/null
        receive 8 && [[ $frame == 000a001e* ]] || { echo login; exit; }
        send "000a001f${frame:8:12}0000"
        vhost="$(text "$AMQP_VHOST")"
        send "000a0028$(number 2 $((${#vhost} / 2)))${vhost}0000"
        receive 8 && [[ $frame == 000a0029* ]] || { echo vhost; exit; }
        send "000a003200c80000000000" && receive 3
        echo "ok $version"
    ' probe "$1" "$2" 2>/dev/null || echo nothing
}

rmq_version_ok() { # version, where
    local major="${1%%.*}" minor="${1#*.}"
    minor="${minor%%.*}"
    [ "$major" -gt "$RMQ_MIN_MAJOR" ] || { [ "$major" -eq "$RMQ_MIN_MAJOR" ] && [ "$minor" -ge "$RMQ_MIN_MINOR" ]; } ||
        die "RabbitMQ $1 at $2 is too old: $RMQ_MIN_MAJOR.$RMQ_MIN_MINOR or later is needed; set AMQP_URL to a newer one"
}

check_amqp_url() {
    local hint="correct AMQP_URL (amqp://user:password@host:port/vhost, with / written as %2f), or unset it to have a local RabbitMQ started"
    split_url "$AMQP_URL" || die "AMQP_URL is not a URL: $hint"
    local where="${url_host}${url_port:+:$url_port}" vhost=/ probe
    case "$url_scheme" in
        amqp) ;;
        amqps)
            say "AMQP_URL ($where) uses TLS; it is checked when the gateway connects"
            return
            ;;
        *) die "AMQP_URL has the scheme '$url_scheme', not amqp://: $hint" ;;
    esac
    if [ -n "$url_slash" ]; then vhost="$(unescape "$url_path")"; fi
    probe="$(amqp_probe "$url_host" "${url_port:-5672}" "${url_user:-guest}" "${url_password:-guest}" "$vhost")"
    case "$probe" in
        ok*) ;;
        nothing) die "AMQP_URL: nothing answers at $where: $hint" ;;
        other) die "AMQP_URL: what answers at $where is not RabbitMQ: $hint" ;;
        login) die "AMQP_URL: RabbitMQ at $where refuses the login of '${url_user:-guest}': $hint" ;;
        vhost) die "AMQP_URL: RabbitMQ at $where has no virtual host '$vhost' for '${url_user:-guest}': $hint" ;;
    esac
    rmq_version_ok "${probe#ok }" "AMQP_URL ($where)"
    say "RabbitMQ ${probe#ok } answers at AMQP_URL ($where)"
}

local_amqp() { amqp_probe 127.0.0.1 "$RMQ_LOCAL_PORT" guest guest /; }
prepare_rabbitmq() { # the probe's answer
    case "$1" in
        ok*) rmq_version_ok "${1#ok }" "127.0.0.1:$RMQ_LOCAL_PORT" ;;
        *) die "RabbitMQ answers on 127.0.0.1:$RMQ_LOCAL_PORT, but not to guest: set AMQP_URL=amqp://user:password@127.0.0.1:$RMQ_LOCAL_PORT/%2f" ;;
    esac
    say "RabbitMQ ${1#ok } is ready on 127.0.0.1:$RMQ_LOCAL_PORT"
    AMQP_URL="amqp://guest:guest@127.0.0.1:$RMQ_LOCAL_PORT/%2f"
}

rmq_pid() { if have pgrep; then pgrep -u rabbitmq -x beam.smp | tail -n 1 || true; fi; }
# Erlang cannot start a node on a host name that does not resolve, which happens in containers.
rabbitmq_env() { # node name as remembered, or nothing
    rmq_env=()
    if [ "${1:-default}" = localhost ]; then rmq_env=(RABBITMQ_NODENAME=rabbit@localhost); fi
}
start_debian_rabbitmq() {
    local node=default log
    [ "$RMQ_LOCAL_PORT" = 5672 ] || die "the packaged RabbitMQ listens on port 5672: unset SERVICES_RABBITMQ_PORT, or set AMQP_URL"
    if [ -d /run/systemd/system ]; then
        say "starting RabbitMQ"
        root systemctl start rabbitmq-server >&2 </dev/null || die "RabbitMQ does not start: see journalctl -u rabbitmq-server"
        remember rabbitmq systemctl - "$(rmq_pid)"
        return
    fi
    if ! getent hosts "$(uname -n)" >/dev/null 2>&1 && ! root grep -qs '^ *NODENAME' /etc/rabbitmq/rabbitmq-env.conf; then node=localhost; fi
    rabbitmq_env "$node"
    say "starting RabbitMQ"
    mkdir -p "$state_dir"
    log="$state_dir/rabbitmq.log"
    # A daemon that kept our stdout open would hang the caller's $(…).
    (cd / && root env ${rmq_env[@]+"${rmq_env[@]}"} rabbitmq-server -detached >"$log" 2>&1 </dev/null) ||
        die "RabbitMQ does not start: see $log and /var/log/rabbitmq"
    started_rabbitmq="$node"
}

# ---- all together ---------------------------------------------------------------------------------------------------

debian_packages() { # packages that are missing
    local missing=("$@") package candidate
    say "installing ${missing[*]} (Debian packages)"
    local get=(env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=60)
    candidate="$(apt-cache policy "${missing[0]}" 2>/dev/null | awk '/Candidate:/ { print $2 }')"
    if [ -z "$candidate" ] || [ "$candidate" = "(none)" ]; then
        root "${get[@]}" update >/dev/null </dev/null || die "apt-get update failed: is there a network?"
    fi
    for package in "${missing[@]}"; do
        candidate="$(apt-cache policy "$package" | awk '/Candidate:/ { print $2 }')"
        candidate="${candidate#*:}"
        case "$package" in
            postgresql)
                [ "${candidate%%[+.]*}" -ge "$PG_MIN" ] 2>/dev/null ||
                    die "this distribution offers PostgreSQL ${candidate:-not at all}, $PG_MIN or later is needed: see https://www.postgresql.org/download/linux/, or set DATABASE_URL"
                ;;
            rabbitmq-server)
                (rmq_version_ok "$candidate" packages) 2>/dev/null ||
                    die "this distribution offers RabbitMQ ${candidate:-not at all}, $RMQ_MIN_MAJOR.$RMQ_MIN_MINOR or later is needed: see https://www.rabbitmq.com/docs/install-debian, or set AMQP_URL"
                ;;
        esac
    done
    # A package whose service may not start (policy-rc.d) is installed all the same; a stale index is refreshed once.
    mkdir -p "$state_dir"
    local log="$state_dir/apt-get.log" install=("${get[@]}" --no-install-recommends install "${missing[@]}")
    root "${install[@]}" >"$log" 2>&1 </dev/null ||
        { root "${get[@]}" update >>"$log" 2>&1 </dev/null && root "${install[@]}" >>"$log" 2>&1 </dev/null; } ||
        die "could not install ${missing[*]}: $(grep '^E: ' "$log" | tail -n 1) (see $log)"
}

# Something that accepts connections and does not speak the protocol may be a container on its way up: give it a moment.
settled() { # probe command
    local answer deadline=$((SECONDS + 8))
    while answer="$("$@")" && [ "$answer" = other ] && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.5; done
    echo "$answer"
}
wait_for() { # name, probe command
    local name="$1" answer deadline=$((SECONDS + READY_WITHIN))
    shift
    while answer="$("$@")" && { [ "$answer" = nothing ] || [ "$answer" = other ]; }; do
        [ "$SECONDS" -lt "$deadline" ] || die "$name is not ready after $READY_WITHIN s: see its log (/var/log, or docker compose -f deploy/compose.yaml logs)"
        sleep 0.3
    done
    echo "$answer"
}

start_services() {
    local need_pg='' need_rmq='' answer='' pg_given="${DATABASE_URL:-}" rmq_given="${AMQP_URL:-}" missing=() ready=1
    pg_port="$PG_LOCAL_PORT" started_rabbitmq=''
    if [ -n "$pg_given" ]; then
        check_database_url
    else
        case "$(settled pg_probe 127.0.0.1 "$PG_LOCAL_PORT")" in
            postgres) prepare_postgres ;;
            other) die "port $PG_LOCAL_PORT is taken by something that is not PostgreSQL: stop it, or set DATABASE_URL to a PostgreSQL elsewhere" ;;
            nothing) need_pg=1 ;;
        esac
    fi
    if [ -n "$rmq_given" ]; then
        check_amqp_url
    else
        answer="$(settled local_amqp)"
        case "$answer" in
            other) die "port $RMQ_LOCAL_PORT is taken by something that is not RabbitMQ: stop it, or set AMQP_URL to a RabbitMQ elsewhere" ;;
            nothing) need_rmq=1 ;;
            *) prepare_rabbitmq "$answer" ;;
        esac
    fi

    if [ -n "$need_pg$need_rmq" ]; then
        if docker_works; then
            if [ -n "$need_rmq" ]; then compose up -d rabbitmq >&2 </dev/null && remember rabbitmq compose - -; fi
            if [ -n "$need_pg" ]; then compose up -d postgres >&2 </dev/null && remember postgres compose - -; fi
        elif have apt-get && can_be_root; then
            if [ -n "$need_pg" ] && ! { have pg_ctlcluster && [ -d /usr/lib/postgresql ]; }; then missing+=(postgresql); fi
            if [ -n "$need_rmq" ] && ! root sh -c 'command -v rabbitmq-server' >/dev/null; then missing+=(rabbitmq-server); fi
            if [ "${#missing[@]}" -gt 0 ]; then debian_packages "${missing[@]}"; fi
            # The broker takes longer: it starts while the database does.
            if [ -n "$need_rmq" ] && [ "$(local_amqp)" = nothing ]; then start_debian_rabbitmq; fi
            if [ -n "$need_pg" ] && [ "$(pg_probe 127.0.0.1 "$PG_LOCAL_PORT")" = nothing ]; then start_debian_postgres; fi
        else
            die "no $(what_is_missing "$need_pg" "$need_rmq") on this machine and no way to start it from here: start Docker, or install" \
                "PostgreSQL $PG_MIN+ and RabbitMQ $RMQ_MIN_MAJOR.$RMQ_MIN_MINOR+ (Debian, Ubuntu: sudo apt-get install postgresql rabbitmq-server;" \
                "macOS: brew install postgresql@17 rabbitmq && brew services start postgresql@17 && brew services start rabbitmq)," \
                "or set $(what_to_set "$need_pg" "$need_rmq")"
        fi
        if [ -n "$need_pg" ]; then
            wait_for PostgreSQL pg_probe 127.0.0.1 "$pg_port" >/dev/null
            prepare_postgres
        fi
        if [ -n "$need_rmq" ]; then
            answer="$(wait_for RabbitMQ local_amqp)" || ready=''
            if [ -n "$started_rabbitmq" ]; then remember rabbitmq detached "$started_rabbitmq" "$(rmq_pid)"; fi
            if [ -z "$ready" ]; then exit 1; fi
            prepare_rabbitmq "$answer"
        fi
    fi

    # A URL that was given is in the caller's environment already and may hold a real password: it is not repeated.
    if [ -z "$pg_given" ]; then printf 'export DATABASE_URL=%q\n' "$DATABASE_URL"; fi
    if [ -z "$rmq_given" ]; then printf 'export AMQP_URL=%q\n' "$AMQP_URL"; fi
}
what_is_missing() { echo "${1:+PostgreSQL}${1:+${2:+ and }}${2:+RabbitMQ}"; }
what_to_set() { echo "${1:+DATABASE_URL}${1:+${2:+ and }}${2:+AMQP_URL}"; }

skip_systemd=()
if [ ! -d /run/systemd/system ]; then skip_systemd=(--skip-systemctl-redirect); fi

# One at a time: two terminals may ask at once. `-o` keeps the lock out of the hands of the daemons started below.
if [ -z "${SWITCHBOARD_SERVICES_LOCKED:-}" ] && have flock && mkdir -p "$state_dir" 2>/dev/null && [ -w "$state_dir" ]; then
    status=0
    SWITCHBOARD_SERVICES_LOCKED=1 flock -o -E 75 -w 180 "$state_dir/lock" bash "${BASH_SOURCE[0]}" "$@" || status=$?
    [ "$status" -ne 75 ] || die "another services.sh has been running for 180 s (lock: $state_dir/lock)"
    exit "$status"
fi

case "${1:-start}" in
    start) start_services ;;
    stop) stop_services ;;
    *) die "usage: services.sh [start|stop]" ;;
esac
