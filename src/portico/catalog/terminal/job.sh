#!/bin/sh
# A login shell on a PTY, kept by portico.agent.terminal, which answers on $PORTICO_SOCKET (docs/protocol.md, Terminal).
set -eu

shell=${SHELL:-/bin/sh}
[ -x "$shell" ] || shell=/bin/sh
exec "$PORTICO_PYTHON" -I -m portico.agent.terminal --socket "$PORTICO_SOCKET" -- "$shell" -l
