"""The live page's files, as they lie in `page/`: read once, served with what a browser has to obey."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from expertmesh.actors.gateway.access.level import Access, needs

FOLDER = Path(__file__).parent / "page"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""`no-cache`: kept by the browser, and asked for again by its ETag, so that an upgrade is seen at once."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page."""

    content: bytes
    content_type: str

    @property
    def etag(self) -> str:
        """Names this content."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def read_page(folder: Path = FOLDER) -> dict[str, PageFile]:
    """The page's files by name."""
    return {
        path.name: PageFile(path.read_bytes(), CONTENT_TYPES[path.suffix])
        for path in sorted(folder.iterdir())
        if path.suffix in CONTENT_TYPES
    }


def add_page_routes(app: FastAPI) -> None:
    """Adds `/ui`, which sends browsers on to `/ui/`, where relative addresses mean the page's own files."""
    files = read_page()

    @app.get("/ui")
    @needs(Access.OPEN)
    async def redirect() -> Response:
        return Response(status_code=307, headers={"Location": "ui/"})

    @app.get("/ui/{name:path}")
    @needs(Access.OPEN)
    async def file(name: str, request: Request) -> Response:
        found = files.get(name or "index.html")
        if found is None:
            raise HTTPException(404, "the page has no such file")
        headers = {**HEADERS, "ETag": found.etag}
        if found.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(found.content, headers=headers, media_type=found.content_type)
