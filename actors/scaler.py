"""The way to Serve's numbers of replicas: the REST endpoint on the port of Ray's dashboard.

It is the one that people use, so that both see the same. Ray and Serve have no call for it in Python.
"""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any

import ray

# Private, because Ray has no public way: its token may stand in two variables and a file, or come from
# Kubernetes; what is free is public for the cluster's sum alone; how far the cluster may grow, not at all.
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray._private.state import available_resources_per_node, state

from expertmesh.cluster.scaling import Capacity, Resources, ScaleRefusedError, ScalerUnavailableError
from expertmesh.configs.schema import RAY_RESOURCES

CALL_S = 10.0
"""For one request; the first may find Serve's part of the dashboard still starting."""
APPLICATIONS = "/api/serve/applications/"
VERSION = "/api/version"
DELETING = "DELETING"
"""The state of an application whose numbers say nothing any more."""
STOPPING = "STOPPING"
"""The state of a replica that ends; it still has its resources."""
DISABLED = 412
NOT_LET_IN = (401, 403)


class DashboardPort:
    """Implements `cluster.scaling.ServePort` for a process of the Ray cluster.

    Args:
        app_name: the Serve application.
    """

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name
        self._url: str | None = None
        self._lock = threading.Lock()
        # A proxy of the environment is for the world outside the cluster.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    async def targets(self) -> dict[str, int]:
        """See `ServePort`."""
        deployments = await asyncio.to_thread(self._deployments)
        return {name: details["target_num_replicas"] for name, details in deployments.items()}

    async def set_target(self, deployment: str, n_replicas: int) -> None:
        """See `ServePort`."""
        path = f"/api/v1/applications/{self._app_name}/deployments/{deployment}/scale"
        await asyncio.to_thread(self._call, "POST", path, {"target_num_replicas": n_replicas})

    async def capacity(self) -> Capacity:
        """See `ServePort`."""
        return await asyncio.to_thread(self._capacity)

    # ------------------------------------------------------------------ on a thread

    def _capacity(self) -> Capacity:
        deployments = self._deployments()
        try:
            free = available_resources_per_node()
            limits = state.get_max_resources_from_cluster_config()
            growth = {
                name: n - ray.cluster_resources().get(name, 0.0) for name, n in (limits or {}).items()
            }
        except (ray.exceptions.RayError, RuntimeError) as error:
            raise ScalerUnavailableError(f"Ray does not tell what its nodes have free: {error}") from error
        return capacity_of(deployments, [*free.values(), growth])

    def _deployments(self) -> dict[str, Any]:
        application = self._call("GET", APPLICATIONS)["applications"].get(self._app_name)
        if application is None:
            raise ScalerUnavailableError(f"Serve has no application {self._app_name!r}")
        if application["status"] == DELETING:
            raise ScalerUnavailableError(f"Serve's application {self._app_name!r} is being deleted")
        deployments: dict[str, Any] = application["deployments"]
        return deployments

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        with self._lock:
            if self._url is None:
                self._url = self._find()
            url = self._url
        try:
            return self._send(method, url + path, body)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:500]
            if error.code == DISABLED:
                raise ScaleRefusedError(
                    f"application {self._app_name!r} was deployed without external_scaler_enabled: true"
                ) from error
            if error.code in NOT_LET_IN:
                text = f"the token that Ray has on this node is not the dashboard's: {text}"
            raise ScalerUnavailableError(
                f"Ray's dashboard at {url} answered {error.code}: {text}"
            ) from error
        except (OSError, ValueError) as error:
            with self._lock:
                self._url = None  # it may come back elsewhere
            raise ScalerUnavailableError(f"Ray's dashboard at {url} does not answer: {error}") from error

    def _send(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json", **get_auth_headers_if_auth_enabled({})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        with self._opener.open(request, timeout=CALL_S) as response:
            return json.load(response)

    def _find(self) -> str:
        """The dashboard's URL, as the cluster's GCS knows it.

        A cluster without a dashboard gives an address all the same, at which another cluster's may answer.
        """
        from ray.job_submission import JobSubmissionClient

        context = ray.get_runtime_context()
        try:
            url: str = JobSubmissionClient(context.gcs_address).get_address()
            session = self._send("GET", url + VERSION)["session_name"]
        except Exception as error:  # what Ray's client raises is not documented
            raise ScalerUnavailableError(f"this Ray cluster's dashboard does not run: {error}") from error
        if session != context.get_session_name():
            raise ScalerUnavailableError(
                f"this Ray cluster's dashboard does not run: at {url} is that of another cluster, {session}"
            )
        return url


def capacity_of(deployments: Mapping[str, Any], free: Iterable[Mapping[str, float]]) -> Capacity:
    """What the cluster can place.

    Args:
        deployments: Serve's details of each deployment.
        free: Ray's free resources of each node, and those of the nodes that its autoscaler may add.
    """
    placed, ending = {}, {}
    for name, details in deployments.items():
        states = [replica["state"] for replica in details["replicas"] if replica.get("node_id")]
        ending[name] = states.count(STOPPING)
        placed[name] = len(states) - ending[name]
    return Capacity(
        free=tuple(_resources(node) for node in free),
        placed=placed,
        ending=ending,
    )


def _resources(node: Mapping[str, float]) -> Resources:
    custom = {
        name: amount
        for name, amount in node.items()
        if name not in RAY_RESOURCES and not name.startswith("node:")
    }
    return Resources(node.get("CPU", 0.0), node.get("GPU", 0.0), custom)
