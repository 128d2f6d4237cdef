"""How to reach a session from elsewhere, with this user's own names filled in: its page, and files to download."""

from __future__ import annotations

from typing import Final

from fastapi import Request
from fastapi.responses import Response

from portico.errors import Conflict, NotFound, PorticoError, Unavailable
from portico.model import Identity, Reach, Session
from portico.portal.context import Context, get_context, in_thread
from portico.portal.pages.routers import Who, router
from portico.portal.rendering import render
from portico.sessions.vnc import VncPasswords
from portico.ssh.authority import compute_fingerprint
from portico.ssh.client import INCLUDE, KNOWN_HOSTS, Way, render_known_hosts, render_ssh_config
from portico.ssh.inner import HOST_ALIAS
from portico.ssh.viewer import choose_port, render_tigervnc, render_vnc

VIEWER_FILES: Final = {"desktop.tigervnc": render_tigervnc, "desktop.vnc": render_vnc}
WAY_FILES: Final = {INCLUDE: render_ssh_config, KNOWN_HOSTS: render_known_hosts}


@router.get("/sessions/{session_id}/connect")
async def show_ways(request: Request, who: Who, session_id: str) -> Response:
    """Show how to reach a session from this browser, a terminal, VS Code and a VNC viewer, and how files get there."""
    context = get_context(request)
    return await _show(request, who, await context.sessions.get_own(who, session_id))


@router.post("/sessions/{session_id}/connect/passwords")
async def make_vnc_passwords(request: Request, who: Who, session_id: str) -> Response:
    """Give a desktop new VNC passwords, and show them, this once."""
    context = get_context(request)
    session = await context.sessions.get_own(who, session_id)
    try:
        made = await context.vnc.make_passwords(who, session_id)
    except (Conflict, Unavailable) as error:
        return await _show(request, who, session, about_passwords=True, error=error)
    return await _show(request, who, session, about_passwords=True, passwords=made)


@router.post("/sessions/{session_id}/connect/passwords/remove")
async def remove_vnc_passwords(request: Request, who: Who, session_id: str) -> Response:
    """Take a desktop's VNC passwords away."""
    context = get_context(request)
    session = await context.sessions.get_own(who, session_id)
    await context.vnc.remove_passwords(who, session_id)
    return await _show(request, who, session, about_passwords=True)


async def _show(
    request: Request,
    who: Identity,
    session: Session,
    *,
    about_passwords: bool = False,
    passwords: VncPasswords | None = None,
    error: PorticoError | None = None,
) -> Response:
    context = get_context(request)
    way, trouble = None, None
    try:
        way = await in_thread(context.guide.get_way, who)
    except PorticoError as caught:
        trouble = caught
    return render(
        request,
        "ways.html",
        who,
        session=session,
        error=error,
        about_passwords=about_passwords,
        passwords=passwords,
        has_passwords=passwords is not None or await _has_passwords(context, who, session),
        origin=context.config.portal_origin,
        way=way,
        trouble=trouble,
        has_key=await in_thread(context.guide.has_key, who),
        takes_keys=context.guide.takes_keys,
        commands=list_commands(session, way) if way else {},
    )


@router.get("/sessions/{session_id}/connect/{file_name}")
async def download_file(request: Request, who: Who, session_id: str, file_name: str) -> Response:
    """Return a file for ssh or for a VNC viewer."""
    context = get_context(request)
    session = await context.sessions.get_own(who, session_id)
    if file_name in WAY_FILES:
        text = WAY_FILES[file_name](await in_thread(context.guide.get_way, who))
    elif file_name in VIEWER_FILES and session.reach is Reach.RFB:
        text = VIEWER_FILES[file_name](choose_port(session.id))
    else:
        raise NotFound("There is no such file.")
    # Not text: some browsers would save it as .txt.
    headers = {"Content-Disposition": f'attachment; filename="{file_name}"'}
    return Response(text, media_type="application/octet-stream", headers=headers)


async def _has_passwords(context: Context, who: Identity, session: Session) -> bool:
    """Return whether a desktop is known to have VNC passwords; its page does not need to know."""
    try:
        return await context.vnc.has_passwords(who, session.id)
    except PorticoError:
        return False


def list_commands(session: Session, way: Way) -> dict[str, str]:
    """Return the commands to copy, by name. Every part was looked at: none can end its word in a shell."""
    target, port = f"{session.id}.portico", choose_port(session.id)
    keys = [(kind, body) for kind, body in (line.split(" ") for line in way.host_keys)]
    front = f"-P {way.port} -hostkey {compute_fingerprint(keys[0][1])} {way.user_name}@{way.host}" if keys else ""
    # The same words in sh and in PowerShell: both run what stands in $( ) between double quotes.
    far = f"$(ssh {target} 'echo $PORTICO_SOCKET')"
    return {
        "ssh": f"ssh {target}",
        "putty": f'plink -proxycmd "plink -batch {front} {way.connect} {session.id}" -loghost {HOST_ALIAS} '
        f"{way.user_name}@{target}",
        "ca": way.host_ca,
        "scp": f"scp data.csv {target}:\nscp {target}:results.csv .",
        "rsync": f"rsync -av folder/ {target}:folder/",
        "sftp": f"sftp {target}",
        "port": f"ssh -N -L 8888:localhost:8888 {target}",
        "code": f"code --remote ssh-remote+{target}",
        "tunnel": f'ssh -N -L "{port}:{far}" {target}',
        "password_tunnel": f'ssh -N -L "{port}:{far}.password" {target}',
        "screen_sharing": f"open vnc://localhost:{port}",
        "viewer": f"vncviewer localhost::{port}",
    }
