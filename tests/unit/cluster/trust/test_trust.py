"""The internal services' guards over real sockets: the secret, its rotation, and mutual TLS."""

from __future__ import annotations

import asyncio
import logging
import shutil

import grpc
import pytest
from certificates import Authority
from contiguous_placer import ContiguousPlacer
from fake_member import FakeMember, member_info

from expertmesh.cluster.coordinator import Coordinator
from expertmesh.cluster.state import MembershipRules
from expertmesh.cluster.trust.secret import FileSecret, HeldSecret, SecretError, new_secret
from expertmesh.cluster.trust.tls import TlsError, TlsFiles
from expertmesh.cluster.trust.trust import CONTROL, UNGUARDED, Trust
from expertmesh.proto.v1 import internal_pb2 as pb
from expertmesh.proto.v1 import internal_pb2_grpc

CALL_S = 10.0
RULES = MembershipRules(1, 2, deadline_s=10, report_s=5, prepare_s=30, announce_s=0)


def knowing(secret: str, tls: TlsFiles | None = None) -> Trust:
    held = HeldSecret()
    held.tell(secret)
    return Trust(held, tls)


class Served:
    """A coordinator with a trust of its own; others try to call it."""

    def __init__(self, trust: Trust) -> None:
        self._coordinator = Coordinator(RULES, ContiguousPlacer(2, 8), trust=trust)
        self.address = ""

    async def __aenter__(self) -> Served:
        self.address = await self._coordinator.start("127.0.0.1")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._coordinator.stop()

    async def ask(self, trust: Trust) -> grpc.StatusCode:
        """What Coordinator.GetState answers."""
        async with trust.channel(self.address) as channel:
            stub = internal_pb2_grpc.CoordinatorStub(channel)
            metadata = trust.metadata(f"{CONTROL}GetState", self.address)
            try:
                await stub.GetState(pb.GetStateRequest(), timeout=CALL_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    def ask_from_a_thread(self, trust: Trust) -> grpc.StatusCode:
        with trust.blocking_channel(self.address) as channel:
            stub = internal_pb2_grpc.CoordinatorStub(channel)
            try:
                stub.GetState(pb.GetStateRequest(), timeout=CALL_S)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    async def join(self, trust: Trust) -> grpc.StatusCode:
        """What Membership.Join answers to a stream without proof."""
        async with trust.channel(self.address) as channel:
            call = internal_pb2_grpc.MembershipStub(channel).Join(timeout=CALL_S)
            try:
                # Without a Hello: the refusal does not wait for it, and to grpc's client a stream that ends
                # while it writes is an internal error.
                await call.read()
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK


def test_only_who_knows_the_secret_may_call(caplog):
    async def scenario() -> None:
        ours = knowing(new_secret())
        async with Served(ours) as served:
            assert await served.ask(ours) is grpc.StatusCode.OK
            assert await asyncio.to_thread(served.ask_from_a_thread, ours) is grpc.StatusCode.OK
            with caplog.at_level(logging.WARNING):
                for other in (knowing(new_secret()), UNGUARDED, Trust(HeldSecret())):
                    assert await served.ask(other) is grpc.StatusCode.UNAUTHENTICATED
                    assert await asyncio.to_thread(served.ask_from_a_thread, other) is (
                        grpc.StatusCode.UNAUTHENTICATED
                    )
                    assert await served.join(other) is grpc.StatusCode.UNAUTHENTICATED
            assert "GetState was refused: it has another cluster secret than ours" in caplog.text
            assert "Join was refused: it has no proof" in caplog.text

    asyncio.run(scenario())


def test_a_member_with_another_secret_stays_out_until_it_hears_the_right_one():
    async def scenario() -> None:
        ours, held = knowing(new_secret()), HeldSecret()
        held.tell(new_secret())
        async with Served(ours) as served:
            found = 0

            async def find() -> str:
                nonlocal found
                found += 1
                if found == 3:
                    assert member.topologies == []
                    assert ours.secrets is not None
                    held.tell(ours.secrets()[0])
                return served.address

            member = FakeMember(member_info("g0"), find, Trust(held))
            await member.client.start(member)
            try:
                await member.until(lambda: member.topologies != [])
                assert found >= 3
                assert (await member.client.get_state()).gateways == 1
            finally:
                await member.client.close()

    asyncio.run(scenario())


def test_a_secret_is_rotated_through_its_file_without_a_pause(tmp_path):
    old, new = new_secret(), new_secret()
    server_file, client_file = tmp_path / "server", tmp_path / "client"
    server_file.write_text(old)
    client_file.write_text(old + "\n")

    async def scenario() -> None:
        server, client = Trust(FileSecret(server_file)), Trust(FileSecret(client_file))
        async with Served(server) as served:
            for at_server, at_client, code in (
                (old, old, grpc.StatusCode.OK),
                (f"{old}\n{new}\n", old, grpc.StatusCode.OK),
                (f"{old}\n{new}\n", f"{new}\n{old}\n", grpc.StatusCode.OK),
                (new, new, grpc.StatusCode.OK),
                (new, old, grpc.StatusCode.UNAUTHENTICATED),
                ("short", new, grpc.StatusCode.OK),  # what cannot be used changes nothing
            ):
                server_file.write_text(at_server)
                client_file.write_text(at_client)
                assert await served.ask(client) is code, (at_server, at_client)

    asyncio.run(scenario())


@pytest.mark.parametrize("text", [None, "", "\n \n", "tooshort"])
def test_a_file_without_a_usable_secret_is_named(tmp_path, text):
    path = tmp_path / "secret"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SecretError, match=str(path)):
        FileSecret(path)


def test_a_secret_that_is_told_anew_leaves_the_one_before_valid():
    held = HeldSecret()
    assert (held.current, list(held())) == ("", [])
    for secret in ("a", "a", "b", "c"):
        held.tell(secret)
    assert list(held()) == ["c", "b"]


def files(authority: Authority, name: str = "tls", dns_name: str = "expertmesh") -> TlsFiles:
    pair = authority.issue(name, dns_name)
    return TlsFiles(pair.cert_file, pair.key_file, authority.ca_file, "expertmesh")


@pytest.fixture
def authorities(tmp_path) -> tuple[Authority, Authority]:
    folders = (tmp_path / "ours", tmp_path / "other")
    for folder in folders:
        folder.mkdir()
    return Authority(folders[0]), Authority(folders[1])


def test_mutual_tls_lets_in_who_has_a_certificate_of_the_same_authority(authorities):
    ours, other = authorities
    secret = new_secret()

    async def scenario() -> None:
        good = knowing(secret, files(ours, "server"))
        foreign = files(other, "foreign")
        believing = TlsFiles(foreign.cert_file, foreign.key_file, ours.ca_file, "expertmesh")
        async with Served(good) as served:
            assert await served.ask(knowing(secret, files(ours, "client"))) is grpc.StatusCode.OK
            assert await asyncio.to_thread(served.ask_from_a_thread, good) is grpc.StatusCode.OK
            for tls in (None, foreign, believing):
                assert await served.ask(knowing(secret, tls)) is grpc.StatusCode.UNAVAILABLE
            assert await served.ask(Trust(HeldSecret(), files(ours, "client"))) is (
                grpc.StatusCode.UNAUTHENTICATED
            )
        async with Served(knowing(secret, files(ours, "misnamed", "elsewhere"))) as misnamed:
            assert await misnamed.ask(good) is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


def test_certificates_are_changed_while_the_server_runs(authorities):
    ours, other = authorities
    secret = new_secret()

    async def scenario() -> None:
        served_files = files(ours, "server")
        async with Served(knowing(secret, served_files)) as served:
            client = knowing(secret, files(other, "client"))
            assert await served.ask(client) is grpc.StatusCode.UNAVAILABLE
            new = files(other, "server")
            for source, target in (
                (new.cert_file, served_files.cert_file),
                (new.key_file, served_files.key_file),
                (new.ca_file, served_files.ca_file),
            ):
                shutil.copy(source, target)
            assert await served.ask(client) is grpc.StatusCode.OK
            served_files.key_file.unlink()
            assert await served.ask(client) is grpc.StatusCode.OK

    asyncio.run(scenario())


def test_a_missing_certificate_is_named(tmp_path):
    tls = TlsFiles(tmp_path / "c", tmp_path / "k", tmp_path / "ca", "expertmesh")
    with pytest.raises(TlsError, match=str(tmp_path / "k")):
        tls.server_credentials()
    with pytest.raises(TlsError, match="cannot be read"):
        tls.channel_credentials()
