"""HTTP in front of a [`SlateEngine`]: JSON in and out, served by uvicorn; `higr serve MODEL` starts it.

| request | body | answer |
|---|---|---|
| `POST /recommend` | what `SlateEngine.submit` takes | `{"slate": [...]}` |
| `PUT /users/{user}` | `history`, and perhaps `feedback` and `timestamps` | `{"events": n}` |
| `POST /users/{user}/events` | `{"events": [...]}` | `{"events": n}` |
| `DELETE /users/{user}` | | 204; 404 where nothing was kept |
| `GET /health` | | `{"status": "ok"}`; 503 once the engine is closed |
| `GET /stats` | | counts since the start |

What cannot be answered has a body `{"error": "..."}`: 400 for a request that cannot be met, with the library's own
message, 404 for an unknown user, 413 for a body past `MAX_BODY`, 503 with `Retry-After` for a full queue, 504 after
`timeout` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
from collections.abc import AsyncIterator, Callable, Set
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .engine import SlateEngine
from .errors import EngineClosed, EngineOverloaded, UnknownUserError
from .settings import SETTINGS

MAX_BODY = 2**20
"""Bytes of a request's body; the longest history takes a fraction of it."""

REQUEST = SETTINGS | {"user", "history", "feedback", "timestamps", "events", "exclude", "allowed", "wish"}
"""Keys of a request for a slate."""


def create_app(engine: SlateEngine, timeout: float = 30.0) -> Starlette:
    """The application; it closes the engine, answering what waits, when the server shuts down.

    Args:
        engine: what answers.
        timeout: seconds after which a request is given up.

    Example:
        >>> engine = SlateEngine(model, tokenizer)
        >>> app = create_app(engine)
        >>> engine.close()
    """

    async def recommend(request: Request) -> Response:
        content = await _content(request, REQUEST)
        # Reading a long history takes a while, during which others want to be heard.
        future = await run_in_threadpool(lambda: engine.submit(**content))
        slate = await asyncio.wait_for(asyncio.wrap_future(future), timeout)
        return JSONResponse({"slate": slate})

    async def set_user(request: Request) -> Response:
        content = await _content(request, {"history", "feedback", "timestamps"}, required="history")
        count = await run_in_threadpool(lambda: engine.set_user(request.path_params["user"], **content))
        return JSONResponse({"events": count})

    async def append(request: Request) -> Response:
        content = await _content(request, {"events"}, required="events")
        count = await run_in_threadpool(lambda: engine.append(request.path_params["user"], **content))
        return JSONResponse({"events": count})

    async def forget(request: Request) -> Response:
        user = request.path_params["user"]
        if not await run_in_threadpool(lambda: engine.forget(user)):
            raise UnknownUserError(f"Nothing is known of user {user!r}.")
        return Response(status_code=204)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "closed"}, 503) if engine.closed else JSONResponse({"status": "ok"})

    async def stats(request: Request) -> Response:
        return JSONResponse(engine.stats())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    return Starlette(
        routes=[
            Route("/recommend", recommend, methods=["POST"]),
            Route("/users/{user}", set_user, methods=["PUT"]),
            Route("/users/{user}", forget, methods=["DELETE"]),
            Route("/users/{user}/events", append, methods=["POST"]),
            Route("/health", health),
            Route("/stats", stats),
        ],
        lifespan=lifespan,
        exception_handlers={
            ValueError: _refusal(400),
            UnknownUserError: _refusal(404),
            EngineOverloaded: _overloaded,
            EngineClosed: _refusal(503),
            asyncio.TimeoutError: _late,
            HTTPException: _http_error,
            Exception: _failed,
        },
    )


def serve(app: Starlette, host: str = "127.0.0.1", port: int = 8000, started: Callable[[str], None] = print) -> None:
    """Serve until a signal ends it; requests under way are answered first.

    Args:
        app: from [`create_app`].
        host: address to listen on; beyond loopback only behind something that asks who is there.
        port: 0 for any free one.
        started: is told the address once the port is open.

    Raises:
        OSError: when the port cannot be had.
    """
    with listen(host, port) as listening:
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=30)
        started(f"http://{host}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections send what they have at once.

    asyncio sees to that itself, but not for a socket that was made for it: an answer's second packet then waited for
    the client's delayed acknowledgement, 40 ms of every request on a connection that is kept.

    Raises:
        OSError: when the port cannot be had.
    """
    listening = socket.create_server((host, port))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what accept() returns inherits it
    return listening


async def _content(request: Request, keys: Set[str], required: str | None = None) -> dict[str, Any]:
    """The body, a JSON object of certain keys."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"The body is larger than {MAX_BODY} bytes.")
    try:
        content = json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(400, f"The body is no valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise HTTPException(400, "The body must be a JSON object.")
    if set(content) - keys:
        raise HTTPException(400, f"The body may not have {sorted(set(content) - keys)}; it may have {sorted(keys)}.")
    if required is not None and required not in content:
        raise HTTPException(400, f"The body must have {required!r}.")
    return content


def _refusal(status: int) -> Callable[[Request, Exception], JSONResponse]:
    return lambda request, error: JSONResponse({"error": str(error)}, status)


def _overloaded(request: Request, error: EngineOverloaded) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 503, {"Retry-After": str(max(1, math.ceil(error.retry_after)))})


def _late(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "The slate was not ready in time."}, 504)


def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _failed(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again after this answer, and uvicorn logs it.
    return JSONResponse({"error": "The server failed on this request."}, 500)


__all__ = ["MAX_BODY", "create_app", "serve"]
