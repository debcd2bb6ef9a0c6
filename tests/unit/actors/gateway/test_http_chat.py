"""Reasoning and tool calls as an openai client gets them, streaming and not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import openai
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from expertmesh.actors.gateway.chat_template import ChatTemplate
from expertmesh.actors.gateway.formats.interface import ChatFormat
from expertmesh.actors.gateway.formats.select import CALL_STYLES, REASONING_STYLES
from expertmesh.actors.gateway.tokenizer import TextTokenizer

pytestmark = pytest.mark.anyio

TEMPLATE = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}[{{ m.role }}]{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}
{%- endfor %}>
{%- if enable_thinking %}{{ '<think>' }}{% endif %}"""
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
ASK = [{"role": "user", "content": "Weather in Zürich?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich 世界"}}\n</tool_call>'
ARGUMENTS = {"city": "Zürich 世界"}


@pytest.fixture
def special_tokenizer() -> TextTokenizer:
    """Bytes, and marks that are special tokens: left out of a text unless somebody needs them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<bos>": 0, "<eos>": 1} | {char: 2 + i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ("<bos>", "<eos>", "<tool_call>", "</tool_call>", "<think>", "</think>", "<other>")
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return TextTokenizer(tokenizer)


class Asked:
    """A served model that writes one text, and what it was asked."""

    def __init__(self, client: openai.AsyncOpenAI, router: Any, tokenizer: TextTokenizer) -> None:
        self._client = client
        self._router = router
        self._tokenizer = tokenizer

    @property
    def prompt(self) -> str:
        token_ids = self._router.submits[-1].prompt_token_ids
        return "".join(self._tokenizer.piece(token_id)[1].decode("latin-1") for token_id in token_ids)

    async def whole(self, messages: Any = ASK, **params: Any) -> Any:
        answer = await self._client.chat.completions.create(model="tiny", messages=messages, **params)
        return answer.choices[0]

    async def streamed(self, messages: Any = ASK, **params: Any) -> dict[str, Any]:
        """The sum of the deltas, and how many there were."""
        stream = await self._client.chat.completions.create(
            model="tiny", messages=messages, stream=True, **params
        )
        total: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "n": 0, "finish": None}
        async for chunk in stream:
            [choice] = chunk.choices
            total["n"] += 1
            total["content"] += choice.delta.content or ""
            total["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or []:
                if call.id is not None:
                    assert call.index == len(total["calls"])
                    total["calls"].append([call.id, call.function.name, ""])
                total["calls"][call.index][2] += call.function.arguments
            total["finish"] = choice.finish_reason or total["finish"]
        return total


@pytest.fixture
async def model(
    gateway: Any, http_server: Any, http_app: Any, special_tokenizer: TextTokenizer
) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def start(text: str, **parts: Any) -> Asked:
            tokens = [*special_tokenizer.encode(text, add_special_tokens=False), 1]
            router = await gateway.router(lambda submit: tokens)
            core = await gateway.serving(router, tokenizer=special_tokenizer)
            styles = {"reasoning": REASONING_STYLES["think"], "calls": CALL_STYLES["hermes"]} | parts
            app = http_app(core, ChatFormat(ChatTemplate(TEMPLATE, {}), **styles), _never)
            url = await stack.enter_async_context(http_server(app))
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)
            stack.push_async_callback(client.close)
            return Asked(client, router, special_tokenizer)

        yield start


async def _never() -> Any:
    raise AssertionError("nobody asks for the topology")


Model = Callable[..., Any]


async def test_reasoning_and_a_call(model: Model) -> None:
    asked = await model(f"<think>\nHm, 雨?\n</think>\n\nLet me see.\n{CALL}")
    choice = await asked.whole(tools=TOOLS)
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning_content == "Hm, 雨?"
    assert choice.message.content == "Let me see."
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == ARGUMENTS
    assert asked.prompt.startswith('[{"type": "function"')

    total = await asked.streamed(tools=TOOLS)
    assert (total["reasoning"], total["content"]) == ("Hm, 雨?", "Let me see.")
    [(call_id, name, arguments)] = total["calls"]
    assert call_id != call.id
    assert (name, json.loads(arguments), total["finish"]) == ("weather", ARGUMENTS, "tool_calls")
    assert total["n"] > 20, "they came one by one"


async def test_a_call_without_words_has_no_content(model: Model) -> None:
    choice = await (await model(CALL)).whole(tools=TOOLS)
    assert choice.message.content is None
    assert len(choice.message.tool_calls) == 1


async def test_without_tools_a_call_is_text(model: Model) -> None:
    asked = await model(CALL)
    for params in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = await asked.whole(**params)
        assert (choice.message.content, choice.message.tool_calls) == (CALL, None)
        assert choice.finish_reason == "stop"
        assert asked.prompt == "[user]Weather in ZÃ¼rich?>"


async def test_a_template_may_open_the_reasoning(model: Model) -> None:
    asked = await model("Hm.</think>Sun.")
    thinking = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
    choice = await asked.whole(**thinking)
    assert (choice.message.reasoning_content, choice.message.content) == ("Hm.", "Sun.")
    total = await asked.streamed(**thinking)
    assert (total["reasoning"], total["content"]) == ("Hm.", "Sun.")
    assert (await asked.whole()).message.content == "Hm.</think>Sun."


async def test_special_tokens_show_only_where_they_are_needed(model: Model) -> None:
    plain = await model(f"<other>a</think>{CALL}", reasoning=None, calls=None)
    inside = CALL.removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert (await plain.whole()).message.content == f"a{inside}"
    assert (await (await model("<other>a</think>b")).whole()).message.content == "a</think>b"


async def test_a_forced_call_needs_only_its_arguments(model: Model) -> None:
    asked = await model('{"city": "Bern"}}\n</tool_call>')
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = await asked.whole(tools=TOOLS, tool_choice=choice)
    [call] = answer.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Bern"})
    assert asked.prompt.endswith('><tool_call>\n{"name": "weather", "arguments": ')
    total = await asked.streamed(tools=TOOLS, tool_choice="required")
    assert total["calls"][0][1:] == ["weather", '{"city": "Bern"}']


async def test_one_call_alone_where_more_are_not_wanted(model: Model) -> None:
    asked = await model(f"{CALL}\n{CALL} and {CALL}")
    assert len((await asked.whole(tools=TOOLS)).message.tool_calls) == 3
    choice = await asked.whole(tools=TOOLS, parallel_tool_calls=False)
    [call] = choice.message.tool_calls
    assert json.loads(call.function.arguments) == ARGUMENTS
    assert (choice.finish_reason, choice.stop_reason) == ("tool_calls", None)
    total = await asked.streamed(tools=TOOLS, parallel_tool_calls=False)
    assert len(total["calls"]) == 1
    assert total["finish"] == "tool_calls"


async def test_the_conversation_goes_on_with_the_result(model: Model) -> None:
    asked = await model("Sunny.")
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}
    history = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    ]
    assert (await asked.whole(history, tools=TOOLS)).message.content == "Sunny."
    assert '[assistant]{"name": "weather", "arguments": {"city": "Bern"}}[tool]sun>' in asked.prompt


async def test_logprobs_stay_with_the_tokens_of_calls(model: Model) -> None:
    asked = await model(CALL)
    choice = await asked.whole(tools=TOOLS, logprobs=True)
    assert "".join(bytes(token.bytes).decode("latin-1") for token in choice.logprobs.content).startswith(
        "<tool_call>"
    )


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, "functions"),
        ({"extra_body": {"chat_template": "x"}}, "chat_template"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
    ],
)
async def test_what_is_not_served_is_named(model: Model, params: dict[str, Any], param: str) -> None:
    asked = await model("x")
    with pytest.raises(openai.BadRequestError) as caught:
        await asked.whole(**params)
    assert caught.value.body["param"] == param
