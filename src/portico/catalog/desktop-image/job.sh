#!/bin/sh
# A desktop from a container image. The X server runs outside, so that an image needs none; what draws runs inside. Twice this script
# is started in the image: to see whether there is a desktop, before anybody waits for its picture, and then for the desktop itself.
set -eu
umask 077

find_desktop() {
    for name in portico-desktop startxfce4 mate-session startlxqt startlxde icewm-session openbox-session fluxbox \
        x-session-manager x-window-manager; do
        if command -v "$name"; then return; fi
    done
    echo "the image ${PORTICO_FORM_IMAGE##*/} has no desktop that is known here. It needs XFCE, MATE, LXQt, LXDE, IceWM, Openbox or" \
        "Fluxbox, or a program of its own named portico-desktop" >"$PORTICO_SESSION_DIR/trouble"
    exit 1
}

case ${1:-} in
find)
    find_desktop >/dev/null
    exit
    ;;
run)
    desktop=$(find_desktop)
    [ -x "${SHELL:-}" ] || export SHELL=/bin/sh
    # As in Desktop (XFCE): no compositor, because there is no graphics card to do it; no saved session, because several desktops of one
    # user would restore each other.
    defaults=$XDG_RUNTIME_DIR/xdg
    channels=$defaults/xfce4/xfconf/xfce-perchannel-xml
    mkdir -p "$channels"
    cat >"$channels/xfwm4.xml" <<'XML'
<?xml version="1.0" encoding="UTF-8"?>
<channel name="xfwm4" version="1.0">
  <property name="general" type="empty"><property name="use_compositing" type="bool" value="false"/></property>
</channel>
XML
    cat >"$channels/xfce4-session.xml" <<'XML'
<?xml version="1.0" encoding="UTF-8"?>
<channel name="xfce4-session" version="1.0">
  <property name="general" type="empty">
    <property name="SaveOnExit" type="bool" value="false"/>
    <property name="FailsafeSessionName" type="string" value="Failsafe"/>
  </property>
</channel>
XML
    export XDG_CONFIG_DIRS="$defaults:/etc/xdg" XFCE_PANEL_MIGRATE_DEFAULT=1 XDG_SESSION_TYPE=x11
    case ${desktop##*/} in
    icewm-session | openbox-session | fluxbox | x-window-manager) # a bare window manager: with something to begin with
        if command -v xterm >/dev/null; then
            xterm -fa monospace -fs 11 &
        elif command -v x-terminal-emulator >/dev/null; then
            x-terminal-emulator &
        fi
        ;;
    esac
    shift
    [ "${desktop##*/}" != icewm-session ] || set -- --nobg # a picture behind it all would have to be carried
    if command -v dbus-run-session >/dev/null; then exec dbus-run-session -- "$desktop" "$@"; fi
    exec "$desktop" "$@"
    ;;
esac

inside() {
    "$PORTICO_PYTHON" -I "$PORTICO_CONTAINER" -- "$PORTICO_SESSION_DIR/job.sh" "$1"
}

inside find
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

inside run &
desktop=$!
wait "$desktop"
