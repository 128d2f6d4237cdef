"""The portal's ASGI application: pages, API, errors and static files, behind the guard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from portico.config import Config
from portico.errors import BY_CODE, Invalid, NotFound, NotSignedIn, PorticoError
from portico.model import Identity
from portico.portal import api, events_api, jobs_api, pages, ssh_api, ssh_guide_api, ssh_login_api, vnc_api
from portico.portal.context import Context, Services, get_context, identify_browser
from portico.portal.guard import Guard
from portico.portal.metrics import Meter
from portico.portal.rendering import get_status, render
from portico.portal.static_files import CachedFiles, render_version


def create_app(services: Services) -> FastAPI:
    """Return the application, not yet behind the guard."""
    app = FastAPI(
        title="Portico",
        description="The front door of an HPC system. Everything that the pages do, as JSON.",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        redirect_slashes=False,
    )
    static, assets = Path(__file__).parent / "static", Path(services.config.install_dir) / "assets"
    version = render_version(static, assets)
    app.state.context = Context(**vars(services), version=version)
    routers = [api.public, api.router, jobs_api.router, events_api.router, ssh_api.router, ssh_guide_api.router]
    routers += [ssh_login_api.public, ssh_login_api.router, vnc_api.router]
    for router in (*routers, pages.public, pages.router):
        app.include_router(router)
    app.add_api_route("/api/docs", show_docs, include_in_schema=False)
    root = f"/static/{app.state.context.version}"
    if assets.is_dir():
        app.mount(f"{root}/vendor", CachedFiles(directory=assets), name="vendor")
    app.mount(root, CachedFiles(directory=static), name="static")
    app.add_exception_handler(PorticoError, show_error)
    app.add_exception_handler(Exception, show_error)
    app.add_exception_handler(HTTPException, show_http_error)
    app.add_exception_handler(RequestValidationError, show_validation_error)
    return app


def guard(app: FastAPI, config: Config) -> ASGIApp:
    """Return the application behind the guard, as it is served."""
    return Meter(Guard(app, config, show_fault), app.state.context.metrics)


def _wants_json(request: Request) -> bool:
    return request.url.path.startswith("/api/")


async def show_error(request: Request, error: Exception) -> Response:
    """Say what happened, why, and what to do next: as JSON to the API, as a page to people."""
    if not isinstance(error, PorticoError):
        error = PorticoError(
            "Something went wrong in Portico.", hint="It is in the log. Please tell your administrator."
        )
    if _wants_json(request):
        headers = {"Retry-After": str(int(error.retry_after_s))} if error.retry_after_s else None
        return JSONResponse({"error": error.to_wire()}, status_code=get_status(error), headers=headers)
    if isinstance(error, NotSignedIn):
        if request.method == "GET" and request.url.path != "/feed":
            if match := re.match(r"/e/([a-z0-9-]+)/", request.url.path):
                return RedirectResponse(f"/e/{match[1]}/sign-in", status_code=303)
            return RedirectResponse(f"/sign-in?next={quote(request.url.path)}", status_code=303)
        return render(request, "sign_in.html", None, error=error, next="/")
    if request.scope["portico"]["listener"] == "apps":  # where the portal's stylesheet is not served
        return render(request, "error_plain.html", None, error=error, portal=get_context(request).config.portal_origin)
    return render(request, "error.html", await _find_browser(request), error=error)


async def show_fault(request: Request, error: PorticoError, status: int) -> Response:
    """Say what the guard found wrong."""
    answer = await show_error(request, error)
    answer.status_code = status
    return answer


async def _find_browser(request: Request) -> Identity | None:
    try:
        return await identify_browser(request)
    except PorticoError:
        return None


async def show_http_error(request: Request, error: Exception) -> Response:
    """Say that there is no such page."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return await show_error(request, NotFound("There is no such page.", hint="Begin at the home page."))
    problem = Invalid("This can't be done here.", why=f"{request.method} {request.url.path}")
    return await show_fault(request, problem, status)


async def show_validation_error(request: Request, error: Exception) -> Response:
    """Say which field is wrong."""
    first: dict[str, Any] = dict(error.errors()[0]) if isinstance(error, RequestValidationError) else {}
    field = ".".join(str(part) for part in first.get("loc", ())[1:])
    return await show_error(
        request,
        Invalid("The request is not complete or not right.", why=f"{field}: {first.get('msg', '')}", field=field),
    )


async def show_docs(request: Request) -> HTMLResponse:
    """List the API's routes, from the same description that /api/v1/openapi.json gives."""
    schema = request.app.openapi()
    routes = [
        (method.upper(), path, operation.get("description") or operation.get("summary", ""))
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    return render(request, "api.html", await _find_browser(request), routes=routes, codes=sorted(BY_CODE))
