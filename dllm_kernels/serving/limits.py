"""What stands before the application: the API key, and the size of a body, told before it is read."""

import hashlib
import hmac
import ipaddress
import json
import os
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException

KEY_VARIABLE = "DLLM_KERNELS_API_KEY"

OPEN_PATHS = ("/health",)
"""Answered without a key, for a load balancer."""


def key_digest(host: str) -> str | None:
    """SHA-256 of the API key in the environment; None where there is none and `host` is a loopback address.

    Raises:
        ValueError: another host without a key.
    """
    key = os.environ.get(KEY_VARIABLE, "")
    if key:
        return hashlib.sha256(key.encode()).hexdigest()
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(f"listening on {host} needs an API key in {KEY_VARIABLE}; without one a server is on loopback only")
    return None


def error_body(message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error, as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


class Limits:
    """ASGI middleware: 401 without the key, 413 for a body that is, or turns out to be, over the limit.

    Args:
        app: what it stands before.
        key_digest: SHA-256 of the key, or None for no key.
        most_body: bytes of a body.
        told: hears the path and the status of every answer.
    """

    def __init__(self, app: Any, key_digest: str | None, most_body: int, told: Callable[[str, int], None]):
        self._app, self._key, self._most, self._told = app, key_digest, most_body, told

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def watched(message):
            if message["type"] == "http.response.start":
                self._told(scope["path"], message["status"])
            await send(message)

        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["path"] not in OPEN_PATHS and not self._has_key(headers.get(b"authorization", b"")):
            body = error_body("the API key is missing or wrong", "authentication_error")
            return await _answer(watched, 401, body, (b"www-authenticate", b"Bearer"))
        too_large = f"a body has at most {self._most} bytes"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            return await _answer(watched, 413, error_body(too_large, "invalid_request_error"))
        read = 0

        async def counted():
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                # FastAPI would make any other exception a 400.
                raise HTTPException(413, too_large)
            return message

        await self._app(scope, counted, watched)

    def _has_key(self, header: bytes) -> bool:
        if self._key is None:
            return True
        kind, _, key = header.partition(b" ")
        digest = hashlib.sha256(key.strip()).hexdigest()
        return kind.lower() == b"bearer" and hmac.compare_digest(digest, self._key)


async def _answer(send, status: int, body: dict[str, Any], *headers: tuple[bytes, bytes]) -> None:
    content = json.dumps(body).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": content})
