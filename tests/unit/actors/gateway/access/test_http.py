"""Keys and limits over HTTP, as OpenAI's client sees them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import count

import openai
import pytest
from api_keys import entry, key_text

from expertmesh.actors.gateway.access.gate import Gate
from expertmesh.actors.gateway.access.key_file import keyring_of
from expertmesh.actors.gateway.access.keys import new_key
from expertmesh.actors.gateway.formats.interface import ChatFormat

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client_of(gateway, http_server, http_app, tmp_path):
    """`client_of(**limits)`: a client whose key has these limits, and the core behind."""
    async with AsyncExitStack() as stack:

        async def start(**limits):
            core = await gateway.serving(await gateway.router())
            key = new_key()
            text = key_text(entry(key, name="caller", limits=limits))
            keyring = keyring_of(text.encode(), tmp_path)
            gate = Gate(lambda: keyring)

            async def fresh():
                return core.topology

            url = await stack.enter_async_context(
                http_server(http_app(core, ChatFormat(None), fresh, gate))
            )
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
            stack.push_async_callback(client.close)
            return client, core

        yield start


async def test_a_refusal_for_a_limit_is_as_openais(client_of):
    client, _ = await client_of(requests_per_minute=1)
    ask = client.completions.with_raw_response.create
    first = await ask(model="tiny", prompt=[5, 6], max_tokens=3)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as refused:
        await ask(model="tiny", prompt=[5, 6], max_tokens=3)
    assert refused.value.code == "rate_limit_exceeded"
    headers = refused.value.response.headers
    assert 55 <= int(headers["retry-after"]) <= 60
    assert headers["x-ratelimit-remaining-requests"] == "0"


async def test_a_stream_spends_what_it_generates(client_of):
    client, core = await client_of(tokens_per_minute=10_000)
    stream = await client.completions.create(model="tiny", prompt=[5, 6], max_tokens=30, stream=True)
    assert stream.response.headers["x-ratelimit-limit-tokens"] == "10000"
    async for _ in stream:
        pass
    answer = await client.completions.with_raw_response.create(model="tiny", prompt=[5], max_tokens=3)
    left = int(answer.headers["x-ratelimit-remaining-tokens"])
    # What has come in since then is all that may be there besides.
    assert 10_000 - 36 <= left <= 10_000
    assert core.n_outstanding == 0


async def test_a_stream_that_is_broken_off_no_longer_counts(client_of):
    client, core = await client_of(concurrent_requests=1)
    stream = await client.completions.create(model="tiny", prompt=[5, 6], max_tokens=4000, stream=True)
    with pytest.raises(openai.RateLimitError):
        await client.completions.create(model="tiny", prompt=[5, 6], max_tokens=1)
    await stream.close()
    for attempt in count():
        try:
            await client.completions.create(model="tiny", prompt=[5, 6], max_tokens=1)
            break
        except openai.RateLimitError:
            assert attempt < 200
    assert core.n_outstanding == 0


async def test_the_name_of_the_key_goes_with_the_request_and_the_key_does_not(client_of, monkeypatch):
    client, core = await client_of()
    seen = []
    generate = core.generate

    def watched(request, *args, **settings):
        seen.append(request)
        return generate(request, *args, **settings)

    monkeypatch.setattr(core, "generate", watched)
    await client.completions.create(model="tiny", prompt=[5, 6], max_tokens=1)
    assert [request.caller.key_name for request in seen] == ["caller"]
    assert client.api_key not in repr(seen)


async def test_who_is_unknown_learns_nothing(client_of):
    client, core = await client_of()
    stranger = client.with_options(api_key=new_key())
    for ask in (
        stranger.models.list,
        lambda: stranger.models.retrieve("tiny"),
        lambda: stranger.chat.completions.create(model="tiny", messages=[]),
    ):
        with pytest.raises(openai.AuthenticationError) as refused:
            await ask()
        assert stranger.api_key not in str(refused.value)
    assert core.n_outstanding == 0
