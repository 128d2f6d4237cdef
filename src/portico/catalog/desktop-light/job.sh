#!/bin/sh
# IceWM on a TigerVNC server that listens on $PORTICO_SOCKET and nowhere else. Logging out of IceWM ends the job.
set -eu
umask 077
runtime=$(dirname "$PORTICO_SOCKET")

# X clients of other users reach the display's socket too; only this cookie keeps them out. It goes through a pipe and a 0600
# file, never through an argument. Family ffff is FamilyWild (Xauth.h), no number: good for whichever display we get.
export XAUTHORITY="$runtime/xauthority"
: >"$XAUTHORITY"
cookie=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
printf 'ffff 0000  0000  0012 4d49542d4d414749432d434f4f4b49452d31 0010 %s\n' "$cookie" | xauth -q nmerge -
unset cookie

# -rfbport -1: no TCP for RFB; -nolisten tcp: none for X. No blacklist: all of our connections have the same (no) address.
# The server writes its number to the pipe when it is ready to serve; when it dies before that, the read below fails.
display_pipe=$runtime/display
mkfifo "$display_pipe"
Xtigervnc -displayfd 3 3>"$display_pipe" \
    -rfbport -1 -rfbunixpath "$PORTICO_SOCKET" -rfbunixmode 0600 -UseBlacklist 0 \
    -SecurityTypes None,VncAuth -PasswordFile "$PORTICO_VNC_PASSWORDS" \
    -nolisten tcp -auth "$XAUTHORITY" \
    -AlwaysShared -AcceptSetDesktopSize -geometry "${PORTICO_FORM_GEOMETRY:-1280x800}" -depth 24 \
    -desktop "$USER" -s 0 -dpms -noreset &
server=$!
door=
trap 'kill $server $door 2>/dev/null || true; rm -f "$PORTICO_VNC_PASSWORDS"' EXIT
trap 'exit 143' TERM
if ! read -r display <"$display_pipe" || [ -z "$display" ]; then
    echo "The X server did not start." >&2
    exit 1
fi
rm -f "$display_pipe"
export DISPLAY=":$display"

# For viewers that want a password, $PORTICO_SOCKET.password. Without any passwords it lets nobody in; who gets to
# $PORTICO_SOCKET itself has been asked already.
"$PORTICO_PYTHON" -I "$PORTICO_VNC_DOOR" --desktop "$PORTICO_SOCKET" --passwords "$PORTICO_VNC_PASSWORDS" &
door=$!

vncconfig -nowin 2>/dev/null & # older clients' clipboard; the server has its own
xsetroot -solid '#31505c' 2>/dev/null || true

# The session bus beside the desktop's other sockets, not in /tmp, where killed sessions would leave theirs. The policy is that of
# Debian's own session.conf: the bus talks to one uid, and who may connect is its socket's folder's business.
cat >"$runtime/bus.conf" <<XML
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <keep_umask/>
  <listen>unix:path=$runtime/bus</listen>
  <auth>EXTERNAL</auth>
  <standard_session_servicedirs/>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
XML
dbus-run-session --config-file="$runtime/bus.conf" -- sh -c 'xterm -fa monospace -fs 11 & exec icewm-session --nobg' &
desktop=$!
wait "$desktop"
