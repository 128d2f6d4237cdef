#!/bin/sh
# VS Code's server on $PORTICO_SOCKET. openvscode-server, because code-server can't be served below a path without rewriting.
# The gateway lets nobody but the user in and the socket is 0600 (umask), so a connection token would be a second login.
set -eu
umask 077
exec openvscode-server \
    --socket-path "$PORTICO_SOCKET" \
    --server-base-path "$PORTICO_BASE_PATH" \
    --without-connection-token \
    --accept-server-license-terms \
    --telemetry-level off \
    --default-folder "$HOME"
