"""The checkpoint's chat template: messages to one prompt, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from expertmesh.actors.gateway.errors import invalid

_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


class ChatTemplate:
    """A Jinja template with the variables and helpers that published templates use.

    Args:
        source: the template's text.
        special_tokens: values of `bos_token` and the like.

    Raises:
        jinja2.TemplateSyntaxError: the template does not parse.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    @classmethod
    def load(cls, model_path: Path) -> ChatTemplate | None:
        """From `chat_template.jinja` or `tokenizer_config.json`; None when neither has a template."""
        config_path = model_path / "tokenizer_config.json"
        config = json.loads(config_path.read_text()) if config_path.is_file() else {}
        source = _template_source(model_path, config)
        if source is None:
            return None
        tokens = {name: _token_text(config[name]) for name in _SPECIAL_TOKENS if config.get(name)}
        return cls(source, tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation.

        Raises:
            GatewayError: the template refuses the messages; names the field `messages`.
        """
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._special_tokens
            )
        except (jinja2.TemplateError, KeyError, TypeError, ValueError) as error:
            raise invalid("messages", f"the model's chat template refuses them: {error}") from error


def _template_source(model_path: Path, config: Mapping[str, Any]) -> str | None:
    path = model_path / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
    return source if isinstance(source, str) else None


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
