"""Writes docs/configuration.md from the schema: `python tools/gen_config_docs.py`."""

from __future__ import annotations

import ast
import inspect
import json
import typing
from pathlib import Path

from pydantic.fields import FieldInfo

from expertmesh.configs.schema import DeploymentConfig
from expertmesh.configs.section import Section

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
INTRO = """# Configuration

<!-- Written by tools/gen_config_docs.py from configs/schema.py (`make docs`). -->

A deployment is one YAML file. Every setting but `model.path` has a default.
`configs/demo.yaml` is an example:

```yaml
{example}```

- Paths are relative to the file.
- Unknown keys are errors: the message names the key and the nearest valid one. Keys that stand twice are
  errors too.
- `--set dotted.key=value` on the command line overrides a setting. The value is YAML; the later one wins.
  The options `--model`, `--routers`, `--experts`, `--dtype`, `--device`, `--http-port`, `--grpc-port` are
  short forms, and win over `--set`. A path given to `--model` is relative to the working directory.
- Names say the unit: `_s` seconds, `_ms` milliseconds, `_tokens`, `_bytes`.
- From the environment come two things: `RAY_ADDRESS`, the Ray cluster to serve on (without it, or with
  `local`, `expertmesh serve` starts a cluster of its own on this machine), and `EXPERTMESH_API_KEY`, the
  key of commands that call a deployment (`--api-key-file` wins).
"""


def render() -> str:
    """The whole page."""
    example = "".join(
        line
        for line in (TARGET.parent.parent / "configs" / "demo.yaml").read_text().splitlines(keepends=True)
        if not line.startswith("#")
    )
    parts = [INTRO.format(example=example), _section(DeploymentConfig, "", "The deployment", nested=False)]
    for name, hint in typing.get_type_hints(DeploymentConfig).items():
        if name in DeploymentConfig.model_fields and isinstance(hint, type) and issubclass(hint, Section):
            parts.append(_section(hint, f"{name}.", f"`{name}`"))
    return "\n".join(parts)


def _section(section: type[Section], prefix: str, title: str, *, nested: bool = True) -> str:
    lines = [f"## {title}", "", inspect.getdoc(section) or "", ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *_rows(section, prefix, nested=nested)]) + "\n"


def _rows(section: type[Section], prefix: str, *, nested: bool) -> list[str]:
    """A row for each setting; those of sections within it follow in their place."""
    lines = []
    comments = _attribute_docs(section)
    hints = typing.get_type_hints(section)
    for name, field in section.model_fields.items():
        if isinstance(hints[name], type) and issubclass(hints[name], Section):
            lines += _rows(hints[name], f"{prefix}{name}.", nested=True) if nested else []
            continue
        default = "required" if field.is_required() else f"`{_yaml(field.default)}`"
        row = (f"`{prefix}{name}`", _type(hints[name], field), default, comments.get(name, ""))
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _attribute_docs(section: type[Section]) -> dict[str, str]:
    """The string under each field in the source."""
    [node] = ast.parse(inspect.getsource(section)).body
    assert isinstance(node, ast.ClassDef)
    docs = {}
    for field, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            docs[field.target.id] = _text_of(after)
    return docs


def _text_of(node: ast.stmt) -> str:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value
    return " ".join(text.split()) if isinstance(text, str) else ""


def _type(hint: object, field: FieldInfo) -> str:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{option}`" for option in options)
    if typing.get_origin(hint) is dict:
        return "numbers by name"
    base = options[0] if options else hint
    name = {Path: "path", str: "text", int: "integer", float: "number", bool: "`true`, `false`"}[
        typing.cast(type, base)
    ]
    bounds = {type(bound).__name__: bound for bound in field.metadata}
    words = [
        f"{sign} {getattr(bounds[kind], kind.lower())}"
        for kind, sign in (("Ge", "≥"), ("Gt", ">"), ("Le", "≤"), ("Lt", "<"))
        if kind in bounds
    ]
    return " ".join([name, ", ".join(words)]).strip()


def _yaml(value: object) -> str:
    """The value as it stands in a file."""
    return json.dumps(value) if value is None or isinstance(value, bool) else f"{value}"


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(render())
