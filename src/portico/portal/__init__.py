"""The portal: pages, REST API and sign-in. Never opens a user's file or socket, and runs nothing."""

from portico.portal.app import create_app
from portico.portal.serve import serve

__all__ = ["create_app", "serve"]
