"""Imports go one way, and processes without tensors load no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

MAY_IMPORT = {
    "cli": {"cli", "actors", "cluster", "models", "configs", "proto"},
    "actors": {"actors", "engine", "models", "kernels", "cluster", "configs", "proto"},
    "engine": {"engine", "models", "kernels"},
    "models": {"models", "kernels"},
    "kernels": {"kernels"},
    "cluster": {"cluster", "configs", "proto"},
    "configs": {"configs"},
    "proto": {"proto"},
}
"""Folder -> folders of expertmesh that it may import from."""

TORCH_FREE_MODULES = (
    "expertmesh.cli.main",
    "expertmesh.cli.generate",
    "expertmesh.cli.status",
    "expertmesh.cli.serving",
    "expertmesh.configs.load",
    "expertmesh.engine.request",
    "expertmesh.engine.batch",
    "expertmesh.engine.scheduler",
    "expertmesh.engine.block_manager",
    "expertmesh.models.spec",
    "expertmesh.models.checkpoint",
    "expertmesh.actors.app",
    "expertmesh.actors.coordinator",
)


def sources(folder: str) -> list[Path]:
    return [path for path in (REPOSITORY / folder).rglob("*.py") if "_pb2" not in path.name]


def imports(tree: ast.AST, path: Path) -> set[str]:
    """Dotted names of all that a tree imports; relative imports made absolute."""
    package = ("expertmesh", *path.relative_to(REPOSITORY).parent.parts)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            found.add(".".join(part for part in (base, node.module) if part))
    return found


def module_level(tree: ast.Module) -> ast.Module:
    """The tree without function bodies: what runs when the module is imported."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

    stripped = Strip().visit(ast.parse(ast.unparse(tree)))
    assert isinstance(stripped, ast.Module)
    return stripped


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder):
    wrong = []
    for path in sources(folder):
        for name in imports(ast.parse(path.read_text()), path):
            parts = name.split(".")
            if parts[0] == "expertmesh" and len(parts) > 1 and parts[1] not in MAY_IMPORT[folder]:
                wrong.append(f"{path.relative_to(REPOSITORY)} imports {name}")
    assert wrong == []


def test_no_module_imports_a_folder_by_its_bare_name():
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for folder in MAY_IMPORT
        for path in sources(folder)
        for name in imports(ast.parse(path.read_text()), path)
        if name.split(".")[0] in MAY_IMPORT
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["cluster", "configs", "proto"])
def test_control_plane_and_leaves_import_neither_torch_nor_ray(folder):
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in sources(folder)
        for name in imports(module_level(ast.parse(path.read_text())), path)
        if name.split(".")[0] in ("torch", "ray")
    ]
    assert wrong == []


def test_folders_that_are_linked_into_the_package_have_no_init_file():
    assert [folder for folder in MAY_IMPORT if (REPOSITORY / folder / "__init__.py").exists()] == []


def test_only_configs_reads_the_environment():
    wrong = []
    for folder in MAY_IMPORT:
        for path in sources(folder):
            tree = ast.parse(path.read_text())
            reads = [
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and (node.value.id, node.attr) in (("os", "environ"), ("os", "getenv"), ("os", "environb"))
            ]
            named = [
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)
                and node.module == "os"
                and {alias.name for alias in node.names} & {"environ", "getenv", "environb"}
            ]
            if folder != "configs" and (reads or named):
                wrong.append(str(path.relative_to(REPOSITORY)))
    assert wrong == []


def gateway_modules() -> tuple[str, ...]:
    paths = sorted((REPOSITORY / "actors" / "gateway").rglob("*.py"))
    assert paths
    return tuple(
        ".".join(("expertmesh", *path.relative_to(REPOSITORY).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in paths
    )


def loaded_by(modules: tuple[str, ...]) -> set[str]:
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *modules], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", TORCH_FREE_MODULES)
def test_modules_of_processes_without_tensors_load_no_torch(module):
    assert "torch" not in loaded_by((module,))


def test_the_gateway_process_loads_no_torch():
    loaded = loaded_by(gateway_modules())
    assert "ray" in loaded, "the gateway is a Serve replica"
    assert "torch" not in loaded


def test_the_command_line_starts_without_ray():
    assert "ray" not in loaded_by(
        ("expertmesh.cli.main", "expertmesh.cli.generate", "expertmesh.cli.status")
    )
