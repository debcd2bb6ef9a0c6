"""The coordinator finds Serve's replicas without loading Serve."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.constants import SERVE_NAMESPACE

from expertmesh.actors import replica_process
from expertmesh.cluster.types import MemberInfo, Role


@pytest.mark.parametrize("role", Role)
def test_names_are_those_of_serve(role: Role) -> None:
    member = MemberInfo(incarnation="i", role=role, node="n", pid=1, device="cpu", replica_id="abc123")
    deployment = DeploymentID(name=replica_process.DEPLOYMENTS[role], app_name="mesh")
    expected = ReplicaID(unique_id="abc123", deployment_id=deployment).to_full_id_str()
    assert replica_process.replica_actor_name("mesh", member) == expected
    assert replica_process.SERVE_NAMESPACE == SERVE_NAMESPACE


def test_the_coordinator_does_not_load_serve() -> None:
    program = (
        "import sys, expertmesh.actors.coordinator; "
        "sys.exit(', '.join({'torch', 'ray.serve', 'fastapi'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
