"""One Ray cluster for all test processes of a run that want one.

The first process that asks starts it, later ones join, and it ends when its starter needs it no more and
the others have left. Ray's own processes are never quite idle, so one for each process would cost time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from serve_cluster import ClusterAddresses, ServeCluster


@contextlib.contextmanager
def shared_cluster(folder: Path) -> Iterator[ServeCluster]:
    """The run's cluster.

    Args:
        folder: one that all of the run's processes see, and no other run.
    """
    told = folder / "cluster.json"
    with contextlib.ExitStack() as stack:
        users = stack.enter_context((folder / "cluster.users").open("w"))
        with _locked(folder / "cluster.lock"):
            starter = not told.exists()
            if starter:
                cluster = ServeCluster.start()
                told.write_text(json.dumps(asdict(cluster.addresses)))
            else:
                fcntl.flock(users, fcntl.LOCK_SH)
                cluster = ServeCluster.join(ClusterAddresses(**json.loads(told.read_text())))
        try:
            yield cluster
        finally:
            if starter:
                with _locked(folder / "cluster.lock"):
                    told.unlink()  # who comes now starts another
                fcntl.flock(users, fcntl.LOCK_EX)
                cluster.close()
            else:
                cluster.leave()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
