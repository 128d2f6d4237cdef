#!/bin/sh
# RStudio Server as the user (not as its own daemon), on $PORTICO_SOCKET. Its database and keys belong to this session alone.
set -eu
umask 077
data=$PORTICO_SESSION_DIR/rstudio
mkdir -p "$data"
printf 'provider=sqlite\ndirectory=%s\n' "$data" >"$data/database.conf"
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$data/secure-cookie-key"
exec /usr/lib/rstudio-server/bin/rserver \
    --server-daemonize=0 \
    --server-user="$USER" \
    --server-data-dir="$data" \
    --server-pid-file="$data/rserver.pid" \
    --database-config-file="$data/database.conf" \
    --secure-cookie-key-file="$data/secure-cookie-key" \
    --www-socket="$PORTICO_SOCKET" \
    --www-root-path="$PORTICO_BASE_PATH" \
    --auth-none=1
