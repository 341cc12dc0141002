"""The application: routes of its parts, behind one authentication."""

from collections.abc import Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from meddaemon.web.authentication import Authentication
from meddaemon.web.refusals import answer


def create_app(routes: Sequence[BaseRoute], *, tokens: Mapping[str, str]) -> Starlette:
    """Return the ASGI application that serves these routes to the senders with these tokens (see `Authentication`)."""
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Authentication, tokens=tokens)],
        exception_handlers={HTTPException: answer},
    )
    # It would send clients wherever their Host header says.
    app.router.redirect_slashes = False
    return app
