"""The live page: static files without a build step."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static"
CLIENT = Path(__file__).parents[2] / "clients" / "typescript" / "src"
"""The JavaScript client, which the page imports from ``/assets/client/``."""
FOLDERS = {"": FOLDER, "client/": CLIENT}
"""What is served below ``/assets/``."""
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
"""Files of other kinds (licences, notes) are not served."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # without any policy: text never becomes markup
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",  # cached but revalidated each time: never an old page with a new API
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
DOCUMENT_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Frame-Options": "DENY",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """A file with its response headers."""

    content: bytes
    headers: dict[str, str]

    @property
    def etag(self) -> str:
        return self.headers["ETag"]


@functools.cache
def assets() -> dict[str, Asset]:
    """All files that are served, by path below ``/assets/``; read once."""
    return {f"{place}{path}": asset for place, folder in FOLDERS.items() for path, asset in _below(folder)}


def _below(folder: Path) -> Iterator[tuple[str, Asset]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in TYPES:
            yield path.relative_to(folder).as_posix(), _asset(path)


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    more = DOCUMENT_HEADERS if path.suffix == ".html" else {}
    return Asset(content, {**HEADERS, **more, "ETag": etag, "Content-Type": TYPES[path.suffix]})


def answer(request: Request, asset: Asset) -> Response:
    """The file, or 304 if If-None-Match has its ETag (RFC 9110, 13.1.2: the weak comparison)."""
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known or known == ["*"]:
        return Response(None, 304, asset.headers)
    response = Response(asset.content, 200, asset.headers)
    if request.method == "HEAD":
        response.body = b""
    return response


def not_found_page() -> Response:
    """The 404 page for browsers."""
    asset = assets()["missing.html"]
    headers = {name: value for name, value in asset.headers.items() if name != "ETag"}
    return Response(asset.content, 404, headers | {"Cache-Control": "no-store", "Vary": "Accept"})


def is_page_request(request: Request) -> bool:
    """Whether a browser requests a page: Accept names HTML, which no API client does, and the path is not the API's."""
    if request.method not in ("GET", "HEAD") or request.url.path.startswith(("/api/", "/v1/", "/assets/")):
        return False
    ranges = [one.split(";") for one in request.headers.get("accept", "").lower().split(",")]
    return any(one[0].strip() == "text/html" and not _refuses(one[1:]) for one in ranges)


def _refuses(parameters: list[str]) -> bool:
    """Whether the parameters of a media range have ``q=0``: not acceptable."""
    weights = [value for name, _, value in (one.strip().partition("=") for one in parameters) if name == "q"]
    return any(not weight.strip("0.") for weight in weights)


@router.api_route("/jobs", methods=["GET", "HEAD"])
@router.api_route("/jobs/", methods=["GET", "HEAD"])
async def redirect_to_list(request: Request) -> Response:
    """Redirect from an address that people type to find the list."""
    query = request.url.query
    return Response(None, 307, {**HEADERS, "Location": f"/?{query}" if query else "/"})


@router.api_route("/", methods=["GET", "HEAD"])
@router.api_route("/jobs/{job_id}", methods=["GET", "HEAD"])
@router.api_route("/threads/{thread}", methods=["GET", "HEAD"])
@router.api_route("/schedules", methods=["GET", "HEAD"])
@router.api_route("/settings", methods=["GET", "HEAD"])
@router.api_route("/batches", methods=["GET", "HEAD"])
@router.api_route("/batches/{batch_id}", methods=["GET", "HEAD"])
async def document(request: Request) -> Response:
    """One document for all views; the page chooses the view by the address."""
    return answer(request, assets()["index.html"])


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs(request: Request) -> Response:
    """The API reference. FastAPI's own loads its scripts from a third party's server."""
    return answer(request, assets()["docs.html"])


@router.api_route("/assets/{path:path}", methods=["GET", "HEAD"])
async def asset(path: str, request: Request) -> Response:
    """A script, style sheet, font or image of the page."""
    found = assets().get(path)
    if found is None or path.endswith(".html"):
        raise HTTPException(404)
    return answer(request, found)
