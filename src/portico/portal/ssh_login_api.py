"""The REST API of SSH certificates: what ``portico ssh login`` asks, and one's own certificates.

A login begins without a sign-in, since there is none yet; but as everything it must come from a program, or from the
portal's own pages (guard.py): otherwise any page could begin one at the address of whoever looks at it.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from portico.accounts.ssh_certificates import INTERVAL_S, LOGIN_LIFE, LoginState
from portico.model import SshCertificate
from portico.portal.api import Shape, Who
from portico.portal.context import RowId, get_address, get_context, identify, in_thread

PAGE = "/ssh-login"

public = APIRouter(prefix="/api/v1/ssh")
router = APIRouter(prefix="/api/v1/ssh", dependencies=[Depends(identify)])


class LoginRequest(Shape):
    """A public key that shall be signed, as in a ``.pub`` file."""

    public_key: str = Field(max_length=4096)


class CollectRequest(Shape):
    """The secret of a login that was begun."""

    device_code: str = Field(max_length=100)


def render_certificate(certificate: SshCertificate) -> dict[str, Any]:
    """Return a certificate as the API tells it; times in ISO 8601, UTC."""
    return {
        "serial": certificate.serial,
        "kind": certificate.kind,
        "fingerprint": certificate.fingerprint,
        "sources": certificate.sources,
        "created": certificate.created,
        "expires": certificate.expires,
        "last_used": certificate.last_used,
        "last_address": certificate.last_address,
    }


@public.post("/login", status_code=201)
async def begin_login(request: Request, body: LoginRequest) -> dict[str, Any]:
    """Begin a login: whoever is signed in in a browser confirms it by its user code (RFC 8628, 3.2)."""
    context, arrival = get_context(request), request.scope["portico"]
    uid = int(arrival["peer_uid"]) if arrival["socket"] == "api" else -1
    begun = await in_thread(context.ssh_certificates.begin, body.public_key, get_address(request), uid)
    return {
        "device_code": begun.device_code,
        "user_code": begun.user_code,
        "verification_path": PAGE,
        "verification_uri": f"{context.config.portal_origin}{PAGE}",
        "interval": INTERVAL_S,
        "expires_in": int(LOGIN_LIFE.total_seconds()),
    }


@public.post("/login/collect")
async def collect_login(request: Request, body: CollectRequest) -> dict[str, Any]:
    """Say how a login stands: pending, refused, expired or done, and then once the certificate and the hosts' CA."""
    certificates = get_context(request).ssh_certificates
    state, certificate = await in_thread(certificates.collect, body.device_code)
    if state is not LoginState.DONE:
        return {"state": state}
    ca = await in_thread(lambda: certificates.host_public)
    return {"state": state, "certificate": certificate, "ca": ca}


@public.get("/trust")
async def read_trust(request: Request) -> dict[str, str]:
    """Return the public key of the authority that signs hosts' keys, for known_hosts."""
    certificates = get_context(request).ssh_certificates
    return {"host_ca": await in_thread(lambda: certificates.host_public)}


@router.get("/certificates")
async def list_certificates(request: Request, who: Who) -> list[dict[str, Any]]:
    """List one's own SSH certificates that are good."""
    found = await in_thread(get_context(request).ssh_certificates.list_certificates, who)
    return [render_certificate(certificate) for certificate in found]


@router.delete("/certificates/{serial}", status_code=204)
async def revoke_certificate(request: Request, who: Who, serial: RowId) -> None:
    """Take back one of one's own SSH certificates; connections that live by it end."""
    await in_thread(get_context(request).ssh_certificates.revoke, who, serial)
