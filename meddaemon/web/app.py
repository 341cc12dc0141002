"""The application: routes of its parts, behind one authentication."""

from collections.abc import Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from meddaemon.web.authentication import Authentication
from meddaemon.web.refusals import answer


def create_app(
    routes: Sequence[BaseRoute],
    *,
    tokens: Mapping[str, str],
    readers: Mapping[str, str] | None = None,
    origins: Sequence[str] = (),
) -> Starlette:
    """Return the ASGI application that serves these routes to who has these tokens (see `Authentication`).

    `origins` are those of web pages, such as a viewer, that a browser may let see the answers.
    """
    middleware = [Middleware(Authentication, tokens=tokens, readers=readers or {})]
    if origins:
        shared = Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET"],
            allow_headers=["Authorization", "Accept", "Content-Type"],
            expose_headers=["Content-Type", "Warning"],
        )
        # Before the authentication: a browser asks whether it may without saying who it is.
        middleware.insert(0, shared)
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: answer})
    # It would send clients wherever their Host header says.
    app.router.redirect_slashes = False
    return app
