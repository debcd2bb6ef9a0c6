"""The HTTP face, spoken to by OpenAI's own client and by a plain one, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx2 as httpx
import openai
import pytest

from expertmesh.actors.gateway.chat_template import ChatTemplate
from expertmesh.actors.gateway.formats.interface import ChatFormat
from expertmesh.configs.schema import LimitsConfig
from expertmesh.proto.v1 import internal_pb2 as pb

pytestmark = pytest.mark.anyio

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


class Service:
    """A gateway with a router, served over HTTP."""

    def __init__(self, core, router, url: str) -> None:
        self.core = core
        self.router = router
        self.url = url
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.http = httpx.AsyncClient(base_url=url, timeout=10)

    async def post(self, path: str, **body) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def events(self, path: str, **body) -> list:
        """The data of a stream's events; the last must be [DONE]."""
        async with self.http.stream("POST", path, json={"stream": True, **body}) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line async for line in response.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.fixture
async def start(gateway, http_server, http_app) -> AsyncIterator:
    async with AsyncExitStack() as stack:

        async def service(
            script=None, *, tokenizer=None, template=TEMPLATE, connected=True, chat_format=None, **limits
        ) -> Service:
            router = await (gateway.router(script) if script else gateway.router())
            settings = {"tokenizer": tokenizer, "limits": LimitsConfig(**limits)}
            core = await gateway.serving(router, **settings) if connected else gateway.core(**settings)

            async def fresh():
                return core.topology

            chat = ChatTemplate(template, {"bos_token": "<bos>"}) if template and tokenizer else None
            url = await stack.enter_async_context(
                http_server(http_app(core, chat_format or ChatFormat(chat), fresh))
            )
            started = Service(core, router, url)
            stack.push_async_callback(started.http.aclose)
            stack.push_async_callback(started.openai.close)
            return started

        yield service


async def test_a_completion_as_openai_gives_it(start, tokenizer, says):
    service = await start(says("Hello, 世界!"), tokenizer=tokenizer)
    answer = await service.openai.completions.create(model="tiny", prompt="Say", max_tokens=100, seed=5)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == ("Hello, 世界!", "stop")
    assert answer.object == "text_completion"
    assert answer.model == "tiny"
    n_output = len("Hello, 世界!".encode()) + 1
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, n_output)
    assert answer.usage.total_tokens == 4 + n_output
    assert service.router.submits[0].sampling.seed == 5


async def test_a_stream_has_the_same_text_and_its_usage_at_the_end(start, tokenizer, says):
    service = await start(says("Hello, 世界!"), tokenizer=tokenizer)
    stream = await service.openai.completions.create(
        model="tiny", prompt="Say", max_tokens=100, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "Hello, 世界!"
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len("Hello, 世界!".encode()) + 1
    assert len({chunk.id for chunk in chunks}) == 1


async def test_chat_renders_the_template_and_answers_as_an_assistant(start, tokenizer, says):
    service = await start(says("Fine."), tokenizer=tokenizer)
    messages = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "How"}, {"type": "text", "text": "are you?"}],
        },
    ]
    answer = await service.openai.chat.completions.create(model="tiny", messages=messages)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "Fine."
    [submit] = service.router.submits
    prompt = tokenizer.decode(submit.prompt_token_ids)
    assert prompt == "system: Be kind.\nuser: How\nare you?\n>"
    # Without max_tokens a chat may take what the context leaves.
    assert submit.sampling.max_tokens == 4096 - len(submit.prompt_token_ids)


async def test_a_chat_stream_tells_the_role_once(start, tokenizer, says):
    service = await start(says("Fine."), tokenizer=tokenizer)
    stream = await service.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "?"}], stream=True, max_completion_tokens=100
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "Fine."
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices[0].delta.role] == ["assistant"]
    assert chunks[0].object == "chat.completion.chunk"
    assert service.router.submits[0].sampling.max_tokens == 100


async def test_logprobs_of_completions(start, tokenizer, says):
    service = await start(says("ab"), tokenizer=tokenizer)
    answer = await service.openai.completions.create(model="tiny", prompt="x", max_tokens=2, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["a", "b"]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.text_offset == [0, 1]
    assert logprobs.top_logprobs[0] == {"a": -0.5, "<bos>": -1.0}


async def test_logprobs_of_chat_streaming_and_not(start, tokenizer, says):
    service = await start(says("é"), tokenizer=tokenizer)
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "?"}],
        "max_tokens": 2,
        "logprobs": True,
        "top_logprobs": 1,
    }
    answer = await service.openai.chat.completions.create(**asked)
    whole = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in whole) == "é".encode()
    assert [entry.logprob for entry in whole] == [-0.5, -0.5]
    assert [len(entry.top_logprobs) for entry in whole] == [1, 1]
    stream = await service.openai.chat.completions.create(**asked, stream=True)
    parts = [entry async for chunk in stream for entry in chunk.choices[0].logprobs.content]
    assert parts == whole


async def test_n_and_several_prompts_give_a_choice_each(start):
    service = await start()
    response = await service.post(
        "/v1/completions", model="tiny", prompt=[[5, 6], [7]], n=2, max_tokens=3, return_token_ids=True
    )
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["token_ids"] for choice in choices] == [[13, 14, 15]] * 2 + [[9, 10, 11]] * 2
    assert [choice["prompt_token_ids"] for choice in choices] == [[5, 6], [5, 6], [7], [7]]
    assert response.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}


async def test_token_ids_come_with_each_chunk_and_the_prompts_once(start):
    service = await start()
    events = await service.events("/v1/completions", prompt=[5, 6], max_tokens=6, return_token_ids=True)
    assert [t for event in events for t in event["choices"][0]["token_ids"]] == [13, 14, 15, 16, 17, 18]
    assert events[0]["prompt_token_ids"] == [5, 6]
    assert events[0]["choices"][0]["prompt_token_ids"] == [5, 6]
    assert not any(
        "prompt_token_ids" in event or "prompt_token_ids" in event["choices"][0] for event in events[1:]
    )


async def test_vllm_extensions_reach_the_router(start):
    service = await start()
    extensions = {
        "ignore_eos": True,
        "top_k": 7,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "stop_token_ids": [250],
        "an_unknown_field": {"is": "ignored"},
    }
    await service.openai.completions.create(
        model="tiny", prompt=[5, 6], max_tokens=2, temperature=0.5, top_p=0.5, extra_body=extensions
    )
    sampling = service.router.submits[0].sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (7, 0.25, 1.5)
    assert (sampling.temperature, sampling.top_p) == (0.5, 0.5)
    assert sampling.stop_token_ids == [250]


async def test_prompt_logprobs_in_vllms_form(start, tokenizer):
    service = await start(tokenizer=tokenizer)
    prompt = list(tokenizer.encode("ab"))
    response = await service.post("/v1/completions", prompt=prompt, max_tokens=1, prompt_logprobs=0)
    rows = response.json()["choices"][0]["prompt_logprobs"]
    assert rows[0] is None
    assert rows[1] == {str(prompt[1]): {"logprob": -2.0, "rank": 7, "decoded_token": "a"}}
    assert len(rows) == len(prompt)
    messages = [{"role": "user", "content": "?"}]
    response = await service.post(
        "/v1/chat/completions", messages=messages, max_tokens=1, prompt_logprobs=0
    )
    assert response.json()["prompt_logprobs"][0] is None
    refused = await service.post("/v1/completions", prompt=prompt, prompt_logprobs=0, stream=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_logprobs")


async def test_models_and_topology(start):
    service = await start()
    models = await service.openai.models.list()
    assert [model.id for model in models.data] == ["tiny"]
    assert (await service.openai.models.retrieve("tiny")).max_model_len == 4096
    with pytest.raises(openai.NotFoundError, match="'other' is not served"):
        await service.openai.models.retrieve("other")
    topology = (await service.http.get("/v1/topology")).json()
    assert topology["generation"] == 1
    assert topology["state"] == "running"
    [router], [expert] = topology["routers"], topology["experts"]
    identity = {"rank": 0, "node": "node-a", "pid": 100, "device": "cpu", "tokens": 5}
    assert router.items() >= identity.items()
    assert router["incarnation"].startswith("router-0")
    assert (expert["rank"], expert["pid"], expert["tokens"]) == (1, 200, 9)
    assert topology["placement"][1] == {"layer": 1, "hosts": [{"rank": 1, "experts": [0, 1]}]}
    assert [layer["tokens"] for layer in topology["expert_tokens"]] == [[1, 2], [3, 4]]


async def test_health_is_ok_only_when_a_generation_can_be_served(start, topology):
    service = await start()
    assert (await service.http.get("/health")).status_code == 200
    service.core.on_topology(topology(service.router, state="forming"))
    assert (await service.http.get("/health")).status_code == 503
    service.core.on_topology(topology(service.router))
    assert (await service.http.get("/health")).status_code == 200
    service.core.drain()
    response = await service.http.get("/health")
    assert (response.status_code, response.json()["state"]) == (503, "draining")


BAD_BODIES = [
    ({"prompt": [5], "max_tokens": "many"}, "max_tokens", "whole number"),
    ({"prompt": [5], "temperature": "hot"}, "temperature", "number"),
    ({"prompt": [5], "n": True}, "n", "whole number"),
    ({"prompt": [5], "n": 0}, "n", "between 1 and 16"),
    ({"prompt": [5, "x"]}, "prompt", "list of token ids"),
    ({"prompt": [5, 5000]}, "prompt", "5000 is outside the vocabulary"),
    ({"prompt": [-1]}, "prompt", "-1 is outside the vocabulary"),
    ({"prompt": []}, "prompt", "empty"),
    ({}, "prompt", "required"),
    ({"prompt": [5], "stop": [1]}, "stop", "string"),
    ({"prompt": [5], "stop": ["x"] * 17}, "stop", "at most 16"),
    ({"prompt": "text"}, "prompt", "has no tokenizer: send token ids"),
    ({"prompt": [5], "logit_bias": {"5": 1.0}}, "logit_bias", "not served"),
    ({"prompt": [5], "stream_options": {"include_usage": True}}, "stream_options", "stream = true"),
    ({"prompt": [5] * 5000}, "prompt", "5000 tokens, at most 4095"),
]


async def test_a_bad_body_is_a_400_that_names_the_field(start):
    service = await start()
    for body, field, message in BAD_BODIES:
        response = await service.post("/v1/completions", **body)
        assert response.status_code == 400, body
        error = response.json()["error"]
        assert error["param"] == field, body
        assert error["type"] == "invalid_request_error"
        assert error["message"].startswith(f"{field}: ")
        assert message in error["message"]
    assert service.router.submits == []


async def test_other_refusals_have_openais_form(start, tokenizer):
    service = await start(tokenizer=tokenizer, max_body_bytes=2000)
    broken = await service.http.post("/v1/completions", content=b"{not json")
    assert (broken.status_code, broken.json()["error"]["param"]) == (400, "body")
    unknown = await service.post("/v1/completions", model="other", prompt="x")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "model")
    large = await service.post("/v1/completions", prompt="x" * 3000)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    nowhere = await service.http.get("/v2/nothing")
    assert (nowhere.status_code, nowhere.json()["error"]["type"]) == (404, "invalid_request_error")
    wrong = await service.http.get("/v1/completions")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (405, None)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 100

    chunked = await service.http.post("/v1/completions", content=endless())
    assert chunked.status_code == 413


async def test_a_template_that_refuses_is_a_400(start, tokenizer):
    service = await start(tokenizer=tokenizer, template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(openai.BadRequestError, match="roles must alternate"):
        await service.openai.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "?"}]
        )


async def test_a_full_queue_is_a_429_and_no_generation_a_503(start):
    service = await start(max_queued_requests=1)
    service.router.go.clear()
    first = asyncio.create_task(service.post("/v1/completions", prompt=[5], max_tokens=1))
    await service.router.until(lambda r: len(r.submits) == 1)
    refused = await service.post("/v1/completions", prompt=[5], stream=True)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    service.router.go.set()
    assert (await first).status_code == 200
    lonely = await start(connected=False, request_timeout_s=0.05)
    for stream in (False, True):
        response = await lonely.post("/v1/completions", prompt=[5], stream=stream)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert response.headers["retry-after"] == "1"


async def test_an_error_in_a_stream_is_its_last_event(start):
    service = await start()

    def fail_at_the_fourth_token(news):
        if news.index < 3:
            return news
        return pb.SequenceNews(
            request_id=news.request_id,
            attempt=news.attempt,
            index=3,
            finish_reason="error",
            error="no luck",
        )

    service.router.edit = fail_at_the_fourth_token
    stream = await service.openai.completions.create(model="tiny", prompt=[5], max_tokens=4000, stream=True)
    await anext(stream)
    with pytest.raises(openai.APIError, match="no luck"):
        async for _ in stream:
            pass


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("started", [False, True])
async def test_a_client_that_goes_away_frees_its_request(start, stream, started):
    service = await start()
    if not started:
        service.router.go.clear()
    body = {"prompt": [5], "max_tokens": 4000, "stream": stream}
    service.router.edit = lambda news: None if news.index > 5 else news  # the stream stays open
    async with httpx.AsyncClient(base_url=service.url) as client:
        call = asyncio.create_task(client.post("/v1/completions", json=body))
        await service.router.until(lambda r: len(r.submits) == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await service.router.until(lambda r: len(r.cancels) == 1)
    assert service.core.n_outstanding == 0


async def test_one_bad_request_does_not_disturb_another_stream(start, tokenizer, says):
    service = await start(says("steady " * 50), tokenizer=tokenizer)
    stream = await service.openai.completions.create(model="tiny", prompt="x", max_tokens=400, stream=True)
    text = ""
    async for chunk in stream:
        text += chunk.choices[0].text
        bad = await service.post("/v1/completions", prompt=[9999999])
        assert bad.status_code == 400
    assert text == "steady " * 50
