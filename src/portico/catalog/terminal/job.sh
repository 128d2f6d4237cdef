#!/bin/sh
# A login shell on a PTY, kept by agent/terminal.py of Portico, which answers on $PORTICO_SOCKET (docs/protocol.md, Terminal). Where an
# image was chosen the shell runs in it, and the PTY's keeper outside: an image needs no Python.
set -eu

if [ -n "${PORTICO_FORM_IMAGE:-}" ]; then
    exec "$PORTICO_PYTHON" -I "$PORTICO_TERMINAL" --socket "$PORTICO_SOCKET" -- \
        "$PORTICO_PYTHON" -I "$PORTICO_CONTAINER" -- \
        /bin/sh -c 'for s in "${SHELL:-}" /bin/bash; do [ ! -x "$s" ] || SHELL=$s exec "$s" -l; done; SHELL=/bin/sh exec /bin/sh -l'
fi
shell=${SHELL:-/bin/sh}
[ -x "$shell" ] || shell=/bin/sh
exec "$PORTICO_PYTHON" -I "$PORTICO_TERMINAL" --socket "$PORTICO_SOCKET" -- "$shell" -l
