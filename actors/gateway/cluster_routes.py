"""HTTP routes that tell of the cluster and change it: the live page's feed, scale, rebalance, reload."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict

from expertmesh.actors.gateway.access.level import Access, needs
from expertmesh.actors.gateway.cluster_changes import ClusterChanges
from expertmesh.actors.gateway.feed.feed import Feed
from expertmesh.actors.gateway.openai_schema import Int, parse_body

NOT_STORED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Nobody on the way keeps or gathers the feed's lines."""


class ScaleBody(BaseModel):
    """`POST /v1/cluster/scale`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deployment: str
    """`routers` or `experts`."""
    replicas: Int


class ReloadBody(BaseModel):
    """`POST /v1/cluster/reload`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """The checkpoint's directory, the same on every node."""


def add_cluster_routes(app: FastAPI, changes: ClusterChanges, feed: Feed) -> None:
    """Adds the routes below `/v1/cluster`."""

    @app.get("/v1/cluster/feed")
    @needs(Access.USER)
    async def read_feed() -> StreamingResponse:
        return StreamingResponse(feed.read(), media_type="application/x-ndjson", headers=NOT_STORED)

    @app.post("/v1/cluster/scale")
    @needs(Access.ADMIN)
    async def scale(request: Request) -> JSONResponse:
        body = parse_body(ScaleBody, await request.body())
        before = await changes.scale(body.deployment, body.replicas, "deployment")
        return JSONResponse(
            {"deployment": body.deployment, "replicas_before": before, "replicas": body.replicas}
        )

    @app.post("/v1/cluster/rebalance")
    @needs(Access.ADMIN)
    async def rebalance() -> JSONResponse:
        answer = await changes.rebalance()
        return JSONResponse({"begun": answer.begun, "imbalance": answer.imbalance})

    @app.post("/v1/cluster/reload")
    @needs(Access.ADMIN)
    async def reload(request: Request) -> JSONResponse:
        body = parse_body(ReloadBody, await request.body())
        answer = await changes.reload(body.path)
        return JSONResponse({"version": answer.version, "after_generation": answer.after_generation})
