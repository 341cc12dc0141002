"""Fetching an archive: by HTTPS, from the host that was named, and only what has the SHA-256 that was named."""

import hashlib
import http.client
import ssl
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from meddaemon.domain.errors import BundleRefused

MAXIMUM_BYTES = 16 * 2**30
TIMEOUT_SECONDS = 30.0
_REDIRECTS = 5
_CHUNK = 2**20


def download(url: str, target: Path, *, ca: Path | None = None, maximum_bytes: int = MAXIMUM_BYTES) -> str:
    """Write what `url` gives to `target`, which must not exist; return its SHA-256 as hexadecimal digits.

    `ca` is a PEM file of who vouches for the host instead of the system's authorities. Redirects are followed on the
    same host only. Raises BundleRefused.
    """
    host = _host(url)
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    try:
        for _ in range(_REDIRECTS):
            connection = http.client.HTTPSConnection(host, timeout=TIMEOUT_SECONDS, context=context)
            try:
                moved = _get(connection, url, target, maximum_bytes)
            finally:
                connection.close()
            if isinstance(moved, bytes):
                return moved.hex()
            url = moved
            if _host(url) != host:
                raise BundleRefused(f"{host} sends us on to {_host(url)}: name that address if you trust it")
    except (OSError, http.client.HTTPException) as error:
        raise BundleRefused(f"{host} did not give the archive: {error}") from error
    raise BundleRefused(f"{host} sends us round in circles")


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BundleRefused(f"{url!a} is not a URL: {error}") from error
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.password or not url.isascii():
        raise BundleRefused(f"{url!a} is not of the form https://host/path, without a password in it")
    return f"{parts.hostname}:{port or 443}"


def _get(connection: http.client.HTTPSConnection, url: str, target: Path, maximum_bytes: int) -> bytes | str:
    """Return the digest of what was written, or where to ask instead."""
    parts = urlsplit(url)
    connection.request("GET", f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}")
    answer = connection.getresponse()
    if answer.status in {301, 302, 303, 307, 308}:
        return urljoin(url, answer.headers.get("Location", ""))
    if answer.status != 200:
        raise BundleRefused(f"{parts.hostname} answers {answer.status} {answer.reason}")
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as file:
        while chunk := answer.read(_CHUNK):
            size += len(chunk)
            if size > maximum_bytes:
                raise BundleRefused(f"{parts.hostname} sends more than {maximum_bytes} bytes")
            digest.update(chunk)
            file.write(chunk)
    return digest.digest()
