"""A router that answers scripted tokens over a real gRPC socket, and what the gateway's tests share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from expertmesh.actors.gateway.core import GatewayCore
from expertmesh.actors.gateway.requests import ModelCard, RawParams, RawRequest
from expertmesh.actors.gateway.tokenizer import TextTokenizer
from expertmesh.configs.schema import LimitsConfig
from expertmesh.proto.v1 import internal_pb2 as pb
from expertmesh.proto.v1 import internal_pb2_grpc as rpc

Script = Callable[[pb.Submit], Sequence[int]]
BOS, EOS, N_SPECIAL = 0, 1, 2
VOCAB_SIZE = 300
WAIT_S = 10.0


class FakeRouter(rpc.RouterStreamServicer):  # type: ignore[misc]
    """Answers each request with `script(submit)`, a token a step, until its eos, its end or max_tokens.

    `pause` holds the steps back; `step_tokens` makes steps bring several tokens, as drafts do.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.submits: list[pb.Submit] = []
        self.cancels: list[pb.Cancel] = []
        self.hellos: list[str] = []
        self.n_keep_alives = 0
        self.go = asyncio.Event()
        self.go.set()
        self.die_after_tokens: int | None = None
        self.edit: Callable[[pb.SequenceNews], pb.SequenceNews | None] = lambda news: news
        self.changed = asyncio.Condition()
        self.address = ""
        self._server: grpc.aio.Server | None = None
        self._open: dict[str, tuple[pb.Submit, int]] = {}

    async def start(self, address: str = "127.0.0.1:0") -> None:
        self._server = grpc.aio.server()
        rpc.add_RouterStreamServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    async def until(self, condition: Callable[[FakeRouter], bool]) -> None:
        """Waits until what the router has seen fulfils a condition."""
        async with self.changed, asyncio.timeout(WAIT_S):
            await self.changed.wait_for(lambda: condition(self))

    async def Session(  # noqa: N802
        self, messages: AsyncIterator[pb.GatewayToRouter], context: Any
    ) -> AsyncIterator[pb.RouterToGateway]:
        self._open = {}
        work = asyncio.Event()
        reader = asyncio.create_task(self._read(messages, work))
        n_sent = 0
        try:
            while True:
                await work.wait()
                await self.go.wait()
                if not self._open:
                    work.clear()
                    continue
                if self.die_after_tokens is not None and n_sent >= self.die_after_tokens:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the router dies")
                n_sent += 1
                load = pb.RouterLoad(running_requests=len(self._open))
                yield pb.RouterToGateway(news=self._step(), load=load)
                await asyncio.sleep(0)
        finally:
            reader.cancel()

    def _step(self) -> list[pb.SequenceNews]:
        sent = []
        for request_id, (submit, index) in list(self._open.items()):
            tokens = self.script(submit)
            sampling = submit.sampling
            token = tokens[index]
            news = pb.SequenceNews(
                request_id=request_id,
                attempt=submit.attempt,
                index=index,
                token_ids=[token],
                stop_token_id=-1,
            )
            if sampling.logprobs >= 0:
                top = range(sampling.logprobs)
                row = pb.LogprobRow(
                    token_ids=[token, *top], logprobs=[-0.5, *(-1.0 - i for i in top)], rank=1
                )
                news.logprobs.append(row)
            if sampling.prompt_logprobs >= 0 and index == len(submit.output_token_ids):
                news.prompt_index = 1
                for token_id in submit.prompt_token_ids[1:]:
                    news.prompt_logprobs.append(
                        pb.LogprobRow(token_ids=[token_id], logprobs=[-2.0], rank=7)
                    )
            self._open[request_id] = (submit, index + 1)
            if token in sampling.stop_token_ids:
                news.finish_reason, news.stop_token_id = "stop", token
            elif index + 1 >= sampling.max_tokens:
                news.finish_reason = "length"
            if news.finish_reason:
                del self._open[request_id]
            edited = self.edit(news)
            if edited is not None:
                sent.append(edited)
        return sent

    async def _read(self, messages: AsyncIterator[pb.GatewayToRouter], work: asyncio.Event) -> None:
        async for message in messages:
            match message.WhichOneof("message"):
                case "hello":
                    self.hellos.append(message.hello.gateway_incarnation)
                case "submit":
                    self.submits.append(message.submit)
                    start = len(message.submit.output_token_ids)
                    self._open[message.submit.request_id] = (message.submit, start)
                    work.set()
                case "cancel":
                    self.cancels.append(message.cancel)
                    self._open.pop(message.cancel.request_id, None)
                case "keep_alive":
                    self.n_keep_alives += 1
            async with self.changed:
                self.changed.notify_all()


def topology(*routers: FakeRouter, number: int = 1, state: str = "running") -> pb.TopologyUpdate:
    """What the coordinator says when these routers serve."""
    members = [
        pb.MemberSpec(
            incarnation=f"router-{i}-{router.address}",
            role=pb.ROLE_ROUTER,
            node="node-a",
            pid=100 + i,
            device="cpu",
            stream_address=router.address,
        )
        for i, router in enumerate(routers)
    ]
    experts = pb.MemberSpec(
        incarnation="expert-0", role=pb.ROLE_EXPERTS, node="node-a", pid=200, device="cpu"
    )
    placement = [pb.LayerSlots(layer=i, hosts=[pb.Slots(experts=[0, 1])]) for i in range(2)]
    spec = pb.GenerationSpec(number=number, members=[*members, experts], placement=placement)
    tokens = [5] * len(routers) + [9]
    return pb.TopologyUpdate(generation=spec, state=state, tokens=tokens, expert_rows=[1, 2, 3, 4])


def count_up(submit: pb.Submit) -> list[int]:
    """A script that depends on the prompt and never ends by itself."""
    first = sum(submit.prompt_token_ids)
    return [N_SPECIAL + (first + i) % (VOCAB_SIZE - N_SPECIAL) for i in range(4096)]


def byte_tokenizer() -> TextTokenizer:
    """Every byte is a token: each character beyond ASCII comes in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<bos>": BOS, "<eos>": EOS} | {char: N_SPECIAL + i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return TextTokenizer(tokenizer)


def make_card() -> ModelCard:
    """The model that the tests serve."""
    return ModelCard("tiny", "TinyForCausalLM", VOCAB_SIZE, 4096, frozenset({EOS}), n_experts=2)


def make_raw(
    prompt: str | tuple[int, ...] = (5, 6, 7), timeout_s: float | None = None, **params: Any
) -> RawRequest:
    """A request as a face would make it."""
    return RawRequest(prompts=(prompt,), params=RawParams(**params), timeout_s=timeout_s)


class Gateway:
    """A core with routers around it; everything is closed at the end."""

    def __init__(self) -> None:
        self._started: list[FakeRouter] = []
        self._cores: list[GatewayCore] = []

    async def router(self, script: Script = count_up, address: str = "127.0.0.1:0") -> FakeRouter:
        router = FakeRouter(script)
        await router.start(address)
        self._started.append(router)
        return router

    def core(
        self,
        *,
        limits: LimitsConfig | None = None,
        tokenizer: TextTokenizer | None = None,
        lease_s: float = 15.0,
        on_outstanding: Callable[[int], None] | None = None,
        stream_chunks_per_s: float = math.inf,
    ) -> GatewayCore:
        bounds = limits or LimitsConfig()
        core = GatewayCore(
            make_card(), bounds, lease_s, tokenizer, "gateway-a", on_outstanding, stream_chunks_per_s
        )
        self._cores.append(core)
        return core

    async def serving(self, *routers: FakeRouter, **settings: Any) -> GatewayCore:
        """A core whose streams to these routers are open."""
        core = self.core(**settings)
        core.on_topology(topology(*routers))
        await self.until_open(core, len(routers))
        return core

    async def until_open(self, core: GatewayCore, n_routers: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while core.n_open_routers < n_routers:
                await core.status_changed()

    async def close(self) -> None:
        for core in self._cores:
            await core.close()
        for router in self._started:
            await router.stop()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def _one_event_loop(anyio_backend: str) -> AsyncIterator[None]:
    """Keeps the event loop of all tests: grpc.aio trips over what is left of a loop that was closed."""
    yield  # noqa: PT022 - anyio keeps the loop for as long as a generator is open


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway()
    yield gateway
    await gateway.close()


@pytest.fixture(name="topology")
def topology_fixture() -> Callable[..., pb.TopologyUpdate]:
    return topology


@pytest.fixture(name="raw")
def raw_fixture() -> Callable[..., RawRequest]:
    return make_raw


@pytest.fixture
def card() -> ModelCard:
    return make_card()


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return byte_tokenizer()


@pytest.fixture
def says(tokenizer: TextTokenizer) -> Callable[[str], Script]:
    """A script that writes a text, then the end-of-sequence token."""

    def script_of(text: str) -> Script:
        tokens = [*tokenizer.encode(text, add_special_tokens=False), EOS]
        return lambda submit: tokens

    return script_of


class FakeControl:
    """A coordinator that does what it is asked, or raises `error`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.error: Exception | None = None

    async def scale(self, deployment: str, n_replicas: int) -> int:
        if self.error:
            raise self.error
        self.asked.append((deployment, n_replicas))
        return 1

    async def rebalance(self) -> pb.RebalanceResponse:
        if self.error:
            raise self.error
        return pb.RebalanceResponse(begun=True, imbalance=1.5)

    async def reload(self, path: str) -> pb.ReloadResponse:
        if self.error:
            raise self.error
        self.asked.append((path, 0))
        return pb.ReloadResponse(version=2, after_generation=7)


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def http_app(control: FakeControl) -> Callable[..., Any]:
    """`http_app(core, chat_format, fresh, gate, feed_times)`: the HTTP face; changes go to `control`."""
    from expertmesh.actors.gateway.cluster_changes import ClusterChanges
    from expertmesh.actors.gateway.feed.feed import Feed
    from expertmesh.actors.gateway.feed.pieces import about_piece
    from expertmesh.actors.gateway.http import build_http_app
    from expertmesh.models.errors import CheckpointError

    def check_weights(path: Path) -> None:
        if path.name == "other":
            raise CheckpointError(path, "another architecture")

    def build(core: Any, chat_format: Any, fresh: Any, gate: Any = None, feed_times: Any = None) -> Any:
        has_chat = chat_format.encoder is not None
        about = about_piece(core, has_chat=has_chat, window_s=60.0, gateway="gateway-a")
        feed = Feed(core, fresh, about, feed_times)
        changes = ClusterChanges(control, check_weights)
        return build_http_app(core, chat_format, fresh, changes, feed, gate)

    return build


@pytest.fixture
def http_server() -> Callable[..., Any]:
    """Serves an ASGI application on a free port of this machine; gives its base URL."""
    import uvicorn

    @asynccontextmanager
    async def serve(app: Any) -> AsyncIterator[str]:
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
        )
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            server.force_exit = True
            await task

    return serve
