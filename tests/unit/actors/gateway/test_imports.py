"""The gateway's process stays small: no torch, and no Ray below the deployment itself."""

from __future__ import annotations

import subprocess
import sys

PACKAGE = "expertmesh.actors.gateway"


def heavy_imports(*modules: str) -> str:
    """Which of torch and Ray a fresh process has loaded after importing modules of the gateway."""
    names = ", ".join(f"{PACKAGE}.{module}" for module in modules)
    code = f"import sys, {names}; print(*sorted({{'torch', 'ray'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_the_faces_and_what_the_proxy_imports_need_neither():
    assert heavy_imports("http", "rpc", "serve_proxy") == ""


def test_the_deployment_needs_ray_alone():
    assert heavy_imports("deployment") == "ray"
