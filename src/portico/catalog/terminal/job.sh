#!/bin/sh
# A login shell on a PTY, kept by agent/terminal.py of Portico, which answers on $PORTICO_SOCKET (docs/protocol.md, Terminal).
set -eu

shell=${SHELL:-/bin/sh}
[ -x "$shell" ] || shell=/bin/sh
exec "$PORTICO_PYTHON" -I "$PORTICO_TERMINAL" --socket "$PORTICO_SOCKET" -- "$shell" -l
