"""The Serve replica that a member is, as Ray knows it."""

from __future__ import annotations

import logging

import ray

from expertmesh.cluster.types import MemberInfo, Role

logger = logging.getLogger(__name__)

SERVE_NAMESPACE = "serve"
DEPLOYMENTS = {Role.GATEWAY: "gateway", Role.ROUTER: "router", Role.EXPERTS: "experts"}


def replica_actor_name(app_name: str, member: MemberInfo) -> str:
    """The name that Serve gives to a replica's actor.

    Serve has no public way to it, and its private one is not imported: the coordinator needs nothing else
    of Serve, which takes half a second of a core to load.
    """
    return f"SERVE_REPLICA::{app_name}#{DEPLOYMENTS[member.role]}#{member.replica_id}"


def kill_replica(app_name: str, member: MemberInfo) -> None:
    """Ends a member's process, even a stopped one; Serve then starts another replica in its place.

    Args:
        app_name: the Serve application.

    Raises:
        ray.exceptions.RayError: Ray does not answer.
    """
    try:
        actor = ray.get_actor(replica_actor_name(app_name, member), namespace=SERVE_NAMESPACE)
    except ValueError:
        logger.info("%s has ended already", member.label)
        return
    ray.kill(actor, no_restart=True)
    logger.info("%s was killed", member.label)
