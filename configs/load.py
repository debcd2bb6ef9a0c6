"""Reads a deployment file: YAML, then `--set` overrides, then validation with errors that help."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from expertmesh.configs.schema import CONFLICT, DeploymentConfig
from expertmesh.configs.section import Section

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a deployment's settings."""

    source: str
    """The file, or the option that brought the value."""
    key: str
    """Dotted; empty when the whole file is meant."""
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.text) if part)


class ConfigError(Exception):
    """A deployment file that cannot be used; one line for each problem."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def load_config(path: Path, overrides: Sequence[str] = ()) -> DeploymentConfig:
    """The deployment that the YAML file describes.

    Args:
        path: the file; relative paths in it start at its folder.
        overrides: `dotted.key=value`, the value in YAML; the later one wins.

    Raises:
        ConfigError: names the file or override, the dotted key and what is wrong.
    """
    settings = _read_yaml(path)
    sources = {key: f"--set {text}" for key, text in _apply(settings, overrides).items()}
    return _validate(settings, str(path), path.resolve().parent, sources)


def config_from_dict(settings: Mapping[str, Any], base: Path | None = None) -> DeploymentConfig:
    """The deployment of plain settings, as Serve's deploy config carries them.

    Args:
        settings: nested, as in the YAML file.
        base: where relative paths start; the working directory when absent.

    Raises:
        ConfigError: names the dotted key and what is wrong.
    """
    return _validate(dict(settings), "deployment settings", base or Path.cwd(), {})


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            settings = yaml.load(file, _UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(Problem(str(path), "", f"cannot be read: {error.strerror}")) from error
    except UnicodeDecodeError as error:
        raise ConfigError(Problem(str(path), "", "is not UTF-8 text")) from error
    except yaml.YAMLError as error:
        raise ConfigError(Problem(_place(path, error), "", f"is not YAML: {_problem(error)}")) from error
    if not isinstance(settings, dict):
        raise ConfigError(Problem(str(path), "", "must be a mapping of settings, with a `model` section"))
    return settings


class _UniqueKeyLoader(yaml.SafeLoader):
    """A key that stands twice in one mapping is an error: YAML's own loader keeps the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _place(path: Path, error: yaml.YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f"{path}:{mark.line + 1}" if mark else str(path)


def _problem(error: yaml.YAMLError) -> str:
    return (isinstance(error, yaml.MarkedYAMLError) and error.problem) or str(error)


def _apply(settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Writes the overrides into `settings`; returns each dotted key with the override's text."""
    applied: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        source = f"--set {override}"
        if not equals or not all(key.split(".")):
            raise ConfigError(Problem(source, "", "must look like dotted.key=value"))
        try:
            value = yaml.load(text, _UniqueKeyLoader)
        except yaml.YAMLError as error:
            raise ConfigError(Problem(source, key, f"the value is not YAML: {_problem(error)}")) from error
        section = settings
        *parents, leaf = key.split(".")
        for depth, parent in enumerate(parents):
            inner = section.setdefault(parent, {})
            if not isinstance(inner, dict):
                dotted = ".".join(parents[: depth + 1])
                raise ConfigError(Problem(source, key, f"{dotted} is {inner!r}, which has no keys in it"))
            section = inner
        section[leaf] = value
        applied[key] = override
    return applied


def _validate(
    settings: dict[str, Any], source: str, base: Path, sources: Mapping[str, str]
) -> DeploymentConfig:
    try:
        config = DeploymentConfig.model_validate(settings)
    except ValidationError as error:
        problems = (_explain(details, source, sources) for details in error.errors())
        raise ConfigError(*problems) from error
    return _resolve_paths(config, base)


def _resolve_paths(config: DeploymentConfig, base: Path) -> DeploymentConfig:
    """Relative paths start at `base`. Links in the paths of keys stay: what is behind them may change."""
    model = config.model.model_copy(update={"path": (base / config.model.path.expanduser()).resolve()})
    security = _absolute(config.security, base)
    tls = _absolute(security.internal_tls, base)
    return config.model_copy(
        update={
            "model": model,
            "access": _absolute(config.access, base),
            "http": _absolute(config.http, base),
            "security": security.model_copy(update={"internal_tls": tls}),
        }
    )


def _absolute(section: SectionT, base: Path) -> SectionT:
    paths = {name: value for name, value in section if isinstance(value, Path)}
    return section.model_copy(
        update={name: base.absolute() / path.expanduser() for name, path in paths.items()}
    )


def _explain(details: ErrorDetails, source: str, sources: Mapping[str, str]) -> Problem:
    conflict = details["type"] == CONFLICT
    keys = details["ctx"]["key"].split(".") if conflict else [str(part) for part in details["loc"]]
    dotted = ".".join(keys)
    by_override = (text for key, text in sources.items() if key == dotted or key.startswith(f"{dotted}."))
    source = next(by_override, source)
    if details["type"] == "extra_forbidden":
        return Problem(source, dotted, f"unknown key; the nearest valid one is `{_nearest(keys)}`")
    if conflict:
        return Problem(source, dotted, details["msg"])
    if details["type"] == "missing":
        return Problem(source, dotted, "is missing")
    if details["type"] == "model_type":
        return Problem(source, dotted, f"must be a section of settings, not {details['input']!r}")
    return Problem(source, dotted, f"{details['msg']}, not {details['input']!r}")


def valid_keys(section: type[Section] = DeploymentConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a deployment file may hold, sections included."""
    hints = typing.get_type_hints(section)
    for name in section.model_fields:
        yield prefix + name
        if isinstance(hints[name], type) and issubclass(hints[name], Section):
            yield from valid_keys(hints[name], f"{prefix}{name}.")


def _nearest(keys: list[str]) -> str:
    """The valid dotted key most like the unknown one: by its last part, then by the whole."""

    def likeness(valid: str) -> tuple[float, float]:
        last = difflib.SequenceMatcher(None, keys[-1], valid.rpartition(".")[2]).ratio()
        whole = difflib.SequenceMatcher(None, ".".join(keys), valid).ratio()
        return last + whole, last

    return max(valid_keys(), key=likeness)
