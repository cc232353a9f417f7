# The bundled PostgreSQL: makes the cluster, its roles and the database once, then becomes the server.
# `start.sh ready` asks whether it answers. For trying sandboxd out: no replica, no backup, no TLS.
set -eu
initdb=$(command -v initdb || ls -d /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
bin=$(dirname "$initdb")
data=/data/pgdata
if [ "${1:-}" = ready ]; then
  exec "$bin/pg_isready" -q -h 127.0.0.1 -p 5432
fi
if [ ! -w /data ]; then
  echo "The volume is not for user $(id -u): storage that ignores fsGroup needs database.bundled.volumePermissions." >&2
  echo "Where this pod was never ready, helm upgrade does not get that far: uninstall, and install again." >&2
  exit 1
fi
if [ ! -s "$data/PG_VERSION" ]; then
  # Made aside and renamed: a half-made cluster is never taken for a whole one.
  rm -rf "$data" "$data.new"
  "$bin/initdb" -D "$data.new" -U postgres --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8
  echo 'host all all all scram-sha-256' >> "$data.new/pg_hba.conf"
  owner=$(cat /etc/sandboxd/passwords/owner)
  service=$(cat /etc/sandboxd/passwords/service)
  # One statement a line, as the single-user mode wants it. The passwords are hexadecimal.
  printf '%s\n' \
    "CREATE ROLE sandboxd_app NOLOGIN" \
    "CREATE ROLE sandboxd_owner LOGIN PASSWORD '$owner'" \
    "CREATE ROLE sandboxd_service LOGIN PASSWORD '$service' IN ROLE sandboxd_app" \
    "CREATE DATABASE sandboxd OWNER sandboxd_owner" |
    "$bin/postgres" --single -D "$data.new" postgres > /dev/null
  mv "$data.new" "$data"
fi
exec "$bin/postgres" -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp -c max_connections=200 \
  -c log_min_messages=warning -c log_timezone=UTC -c jit=off
