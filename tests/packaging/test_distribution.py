"""The wheel that a user installs: complete, and without a name that belongs to others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("actors", "cli", "cluster", "configs", "engine", "kernels", "models", "proto")
pytestmark = pytest.mark.xdist_group("distribution")
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv*", ".cache", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "checkpoints"
)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built out of the sdist."""
    source = tmp_path_factory.mktemp("source") / "expertmesh"
    shutil.copytree(REPOSITORY, source, symlinks=True, ignore=NOT_SOURCES)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source))
    return out


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    [wheel] = distributions.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel; everything else comes from this one."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    python = environment / "bin" / "python"
    site = Path(
        run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    )
    # A plain path line: the .pth files in there (of this editable install) are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    )
    return python


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def module_names() -> list[str]:
    """Every module of the package, from the files in the repository."""
    names = []
    for folder in FOLDERS:
        for path in (REPOSITORY / folder).rglob("*.py"):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            names.append(".".join(("expertmesh", *parts)).removesuffix(".__init__"))
    return sorted(names)


def test_the_wheel_installs_one_top_level_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"expertmesh"}


def test_the_wheel_carries_its_data_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "expertmesh/py.typed" in names
    assert "expertmesh/configs/demo.yaml" in names
    assert "expertmesh/proto/v1/inference.proto" in names
    here = {f"expertmesh/configs/demo/{path.name}" for path in (REPOSITORY / "configs" / "demo").iterdir()}
    assert here <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    tracked = {
        f"expertmesh/{path.relative_to(REPOSITORY)}"
        for folder in FOLDERS
        for suffix in ("py", "pyi", "c", "h", "cpp", "yaml", "proto", "html", "css", "js", "svg")
        for path in (REPOSITORY / folder).rglob(f"*.{suffix}")
    }
    assert tracked - names == set()


def test_every_module_of_the_installed_wheel_imports(installed, tmp_path):
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "import expertmesh\n"
        "print(expertmesh.__file__)\n"
    )
    done = run(str(installed), "-c", program, *module_names(), cwd=tmp_path)
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(installed.parents[1])


def test_no_folder_of_ours_is_a_top_level_module(installed, tmp_path):
    program = (
        "import importlib.util, sys\n"
        "for name in sys.argv[1:]:\n"
        "    spec = importlib.util.find_spec(name)\n"
        "    places = list(spec.submodule_search_locations or [spec.origin]) if spec else []\n"
        "    print(name, *places)\n"
    )
    done = run(str(installed), "-c", program, *FOLDERS, "tests", "tools", cwd=tmp_path)
    ours = [line for line in done.stdout.splitlines() if str(installed.parents[1]) in line]
    assert ours == []


def test_the_installed_command_runs(installed, tmp_path):
    command = str(installed.parent / "expertmesh")
    assert run(command, "--version", cwd=tmp_path).stdout.startswith("expertmesh ")
    demo = run(
        str(installed), "-c", "import expertmesh.configs as c; print(list(c.__path__)[0])", cwd=tmp_path
    ).stdout.strip()
    built = run(command, "build", f"{demo}/demo.yaml", cwd=tmp_path).stdout
    assert f"path: {demo}/demo" in built
