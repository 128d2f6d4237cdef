#!/bin/sh
# JupyterLab on $PORTICO_SOCKET below $PORTICO_BASE_PATH. The gateway lets nobody but the user in, and the socket is 0600, so
# Jupyter's own token would be a second login. Nothing here listens on TCP, where other users of the machine could reach it: kernels
# talk over Unix sockets too (transport ipc, and the kernel below), and `portico up` installs no debugpy, whose adapter would listen on
# 127.0.0.1 without a password.
set -eu
umask 077

# Kernels' sockets stand beside the session's, unless the path would not fit in sun_path (108 bytes, unix(7)).
JUPYTER_RUNTIME_DIR=$(dirname "$PORTICO_SOCKET")/jupyter
if [ ${#JUPYTER_RUNTIME_DIR} -gt 56 ]; then
    JUPYTER_RUNTIME_DIR=$(mktemp -d /tmp/portico-jupyter-XXXXXXXXXX)
fi
export JUPYTER_RUNTIME_DIR
mkdir -p "$JUPYTER_RUNTIME_DIR"
trap 'rm -rf "$JUPYTER_RUNTIME_DIR"' EXIT
trap 'exit 143' TERM

# Numerical libraries take every core of the machine unless they are told what is theirs.
threads=${PORTICO_CORES%.*}
[ "${threads:-0}" -ge 1 ] || threads=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-$threads}"

folder=$HOME/${PORTICO_FORM_FOLDER:-}
if [ ! -d "$folder" ]; then
    echo "There is no folder $folder: the file browser begins in your home." >&2
    folder=$HOME
fi
case $(cd "$folder" && pwd -P)/ in
    "$(cd "$HOME" && pwd -P)"/*) ;;
    *)
        echo "$folder is not below your home: the file browser begins in your home." >&2
        folder=$HOME
        ;;
esac

# The Python kernel as ipykernel has it, but for one thing: output of forked processes comes back over a Unix socket, not over TCP.
kernel=$JUPYTER_RUNTIME_DIR/share/kernels/python3
mkdir -p "$kernel"
cat >"$kernel/kernel.json" <<JSON
{
  "argv": ["$PORTICO_APPS/jupyter/bin/python", "$kernel/launch.py", "-f", "{connection_file}"],
  "display_name": "Python 3",
  "language": "python"
}
JSON
cat >"$kernel/launch.py" <<'PYTHON'
import os
import sys

del sys.path[0]  # this file's folder

import zmq
from ipykernel import iostream, kernelapp
from zmq.eventloop.zmqstream import ZMQStream

ADDRESS = f"ipc://{os.environ['JUPYTER_RUNTIME_DIR']}/output-{os.getpid()}"


class IOPubThread(iostream.IOPubThread):
    def _setup_pipe_in(self):
        self._pipe_uuid = os.urandom(16)
        pipe = self.socket.context.socket(zmq.PULL)
        pipe.linger = 0
        pipe.bind(ADDRESS)
        self._pipe_in = ZMQStream(pipe, self.io_loop)
        self._pipe_in.on_recv(self._handle_pipe_msg)

    def _setup_pipe_out(self):
        context = zmq.Context()
        pipe = context.socket(zmq.PUSH)
        pipe.linger = 3000
        pipe.connect(ADDRESS)
        return context, pipe


kernelapp.IOPubThread = IOPubThread
kernelapp.launch_new_instance()
PYTHON
# No question about news from the network at the first start.
mkdir -p "$JUPYTER_RUNTIME_DIR/config/labconfig"
cat >"$JUPYTER_RUNTIME_DIR/config/labconfig/page_config.json" <<'JSON'
{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}
JSON
export JUPYTER_CONFIG_PATH="$JUPYTER_RUNTIME_DIR/config${JUPYTER_CONFIG_PATH:+:$JUPYTER_CONFIG_PATH}"
export JUPYTER_PATH="$JUPYTER_RUNTIME_DIR/share${JUPYTER_PATH:+:$JUPYTER_PATH}"

PATH=$PORTICO_APPS/jupyter/bin:$PATH
export PATH SHELL="${SHELL:-/bin/sh}"

# Not exec: the traps above have to run. TERM reaches every process of the session, so waiting in the foreground is enough.
"$PORTICO_APPS/jupyter/bin/jupyter-lab" \
    --no-browser \
    --ServerApp.sock="$PORTICO_SOCKET" \
    --ServerApp.sock_mode=0600 \
    --ServerApp.base_url="$PORTICO_BASE_PATH" \
    --ServerApp.root_dir="$HOME" \
    --ServerApp.preferred_dir="$folder" \
    --ServerApp.allow_remote_access=True \
    --ServerApp.quit_button=False \
    --ServerApp.answer_yes=True \
    --IdentityProvider.token= \
    --PasswordIdentityProvider.hashed_password= \
    --KernelManager.transport=ipc
