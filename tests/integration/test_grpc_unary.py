import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from sandboxd.api.grpc.errors import CODES
from sandboxd.api.grpc.server import SERVICES, ServerLimits
from sandboxd.manager.reading import ChangeKind, SandboxChange
from sandboxd.model.backup import Volume
from sandboxd.model.errors import ErrorKind, ExhaustedError, QuotaViolation, SandboxdError, UnavailableError
from sandboxd.tls.files import TlsFiles
from sandboxd.v1 import backup_pb2, sandbox_pb2_grpc, session_pb2, stream_pb2, usage_pb2
from sandboxd.v1 import sandbox_pb2 as pb
from tests.eventually import eventually
from tests.fakes.api import a_sandbox
from tests.integration.api_world import Issuer, World, a_world, refusal_of, refused


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        sandbox = a_sandbox()
        made.manager.sandboxes[sandbox.id] = sandbox
        yield made


def leaves(root: type[SandboxdError]) -> list[type[SandboxdError]]:
    return [leaf for child in root.__subclasses__() for leaf in [child, *leaves(child)]]


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("kind", list(ErrorKind))
async def test_every_kind_of_error_becomes_its_code_with_an_error_info(world: World, kind: ErrorKind) -> None:
    class OneError(SandboxdError):
        reason = "ONE_REASON"

    OneError.kind = kind
    world.manager.failure = OneError("A is B.", a="b")

    error = await refused(world.sandboxes.Get(pb.GetRequest(name="sandboxes/sbx-1"), metadata=world.metadata()))

    assert (error.code, error.message) == (CODES[kind], "A is B.")
    assert (error.info.domain, error.reason, dict(error.info.metadata)) == ("sandboxd.dev", "ONE_REASON", {"a": "b"})


async def test_an_exhausted_quota_says_which_one_and_when_to_try_again(world: World) -> None:
    world.manager.failure = ExhaustedError(
        "Full.",
        violations=[QuotaViolation(subject="clients/acme", description="at most 3 sandboxes")],
        retry_after=timedelta(seconds=2, milliseconds=500),
    )

    error = await refused(world.sandboxes.Create(pb.CreateRequest(request_id="request-1"), metadata=world.metadata()))

    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [(one.subject, one.description) for one in error.quota.violations] == [
        ("clients/acme", "at most 3 sandboxes")
    ]
    assert error.retry.retry_delay.ToTimedelta() == timedelta(seconds=2.5)
    assert error.request.request_id == "request-1"


async def test_a_bug_is_internal_with_a_fixed_text_and_an_id_that_the_log_has(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.manager.failure = ZeroDivisionError("the canary of the inside")

    error = await refused(world.sandboxes.Get(pb.GetRequest(name="sandboxes/sbx-1"), metadata=world.metadata()))

    assert error.code is grpc.StatusCode.INTERNAL
    assert "canary" not in error.message
    assert error.info.metadata["error_id"].startswith("err-")
    assert error.info.metadata["error_id"] in capsys.readouterr().out


async def test_one_error_of_ours_in_a_group_ends_the_call_as_itself(world: World) -> None:
    world.manager.failure = ExceptionGroup("tasks", [UnavailableError("Down.")])

    error = await refused(world.sandboxes.Get(pb.GetRequest(name="sandboxes/sbx-1"), metadata=world.metadata()))

    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


async def test_restore_says_what_comes_back_and_from_where(world: World) -> None:
    backup = "bak-01jz" + "0" * 22
    request = pb.RestoreRequest(
        request_id="request-1",
        name="sandboxes/sbx-1",
        backup=f"sandboxes/sbx-1/backups/{backup}",
        paths=[
            pb.RestorePath(kind=backup_pb2.BACKUP_VOLUME_KIND_HOME, path=b".bashrc"),
            pb.RestorePath(kind=backup_pb2.BACKUP_VOLUME_KIND_HOME, path=b"odd \xff"),
        ],
    )

    answer = await world.sandboxes.Restore(request, metadata=world.metadata())
    error = await refused(
        world.sandboxes.Restore(
            pb.RestoreRequest(
                request_id="request-2", name="sandboxes/sbx-1", backup="latest", paths=[pb.RestorePath(path=b"x")]
            ),
            metadata=world.metadata(),
        )
    )

    assert answer.sandbox.state == pb.SANDBOX_STATE_ACTIVE
    assert world.manager.restored == (("sbx-1", backup), {Volume.HOME: [b".bashrc", b"odd \xff"]})
    assert [one.field for one in error.bad_request.field_violations] == ["backup", "paths[0].kind"]


async def test_create_says_from_which_backup_and_what_of_it(world: World) -> None:
    backup = f"sandboxes/sbx-1/backups/bak-{1:026}"
    request = pb.CreateRequest(request_id="request-1", from_backup=backup, workspace_only=True)

    await world.sandboxes.Create(request, metadata=world.metadata())
    error = await refused(
        world.sandboxes.Create(
            pb.CreateRequest(request_id="request-2", from_backup="sandboxes/sbx-1"), metadata=world.metadata()
        )
    )

    wish = world.manager.wished
    assert wish is not None
    assert (wish.from_backup, wish.workspace_only) == (("sbx-1", f"bak-{1:026}"), True)
    assert (wish.tier, wish.approval_mode, wish.model) == (None, None, "")
    assert [one.field for one in error.bad_request.field_violations] == ["from_backup"]


# ------------------------------------------------------------------------------------------------ validation


async def test_all_violations_of_a_request_come_at_once_with_their_paths(world: World) -> None:
    request = pb.CreateRequest(
        request_id="x",
        sandbox=pb.Sandbox(
            freelancer="Not A Name",
            display_name="n" * 129,
            labels={"Bad Key": "v"},
            tier=99,  # type: ignore[arg-type]  # what a newer client might send
            model="no spaces please",
            approval_mode="whatever",
        ),
    )

    error = await refused(world.sandboxes.Create(request, metadata=world.metadata()))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")
    assert set(error.fields) == {
        "request_id",
        "sandbox.freelancer",
        "sandbox.display_name",
        'sandbox.labels["Bad Key"]',
        "sandbox.tier",
        "sandbox.model",
        "sandbox.approval_mode",
    }
    assert world.manager.sandboxes.keys() == {"sbx-1"}


@pytest.mark.parametrize("method", ["List", "Watch"])
async def test_a_state_that_the_contract_does_not_know_is_refused(world: World, method: str) -> None:
    request = {"List": pb.ListRequest, "Watch": pb.WatchRequest}[method]()
    request.filter.states.extend([pb.SANDBOX_STATE_ACTIVE, 99])

    error = await refused(getattr(world.sandboxes, method)(request, metadata=world.metadata()))

    assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["filter.states[1]"])


async def test_a_dimension_that_the_contract_does_not_know_is_refused(world: World) -> None:
    request = usage_pb2.SummarizeUsageRequest(group_by=[77])  # type: ignore[list-item]  # what a newer client might send

    error = await refused(world.usage.SummarizeUsage(request, metadata=world.metadata()))

    assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["group_by[0]"])


async def test_an_update_of_fields_that_cannot_change_is_refused_field_by_field(world: World) -> None:
    request = pb.UpdateRequest(request_id="request-1", sandbox=pb.Sandbox(name="sandboxes/sbx-1"))
    request.update_mask.paths.extend(["create_time", "model", "state"])

    error = await refused(world.sandboxes.Update(request, metadata=world.metadata()))

    assert error.fields == ["update_mask.paths[0]", "update_mask.paths[2]"]


async def test_an_update_changes_what_the_mask_names_and_nothing_else(world: World) -> None:
    request = pb.UpdateRequest(
        request_id="request-1", sandbox=pb.Sandbox(name="sandboxes/sbx-1", display_name="New", model="gemini-2.5-pro")
    )
    request.update_mask.paths.append("display_name")

    answer = await world.sandboxes.Update(request, metadata=world.metadata())

    assert (answer.sandbox.display_name, answer.sandbox.model) == ("New", "")


# ------------------------------------------------------------------------------------------------ callers


def forged(world: World) -> str:
    other = Issuer(Path("/dev/null"), key_id=world.issuer.key_id)
    return other.token()


def unsigned(world: World) -> str:
    claims = jwt.decode(world.token, options={"verify_signature": False})
    return jwt.encode(claims, "", algorithm="none", headers={"kid": world.issuer.key_id})


def signed_with_the_public_key(world: World) -> str:
    claims = jwt.decode(world.token, options={"verify_signature": False})
    header, payload = (
        jwt.utils.base64url_encode(json.dumps(part).encode()).decode()
        for part in ({"alg": "HS256", "typ": "JWT", "kid": world.issuer.key_id}, claims)
    )
    signature = hmac.new(world.issuer.public, f"{header}.{payload}".encode(), hashlib.sha256).digest()
    return f"{header}.{payload}.{jwt.utils.base64url_encode(signature).decode()}"


BAD_TOKENS: dict[str, tuple[Any, str]] = {
    "expired": (lambda world: world.issuer.token(exp=int(time.time()) - 3600), "TOKEN_EXPIRED"),
    "forged": (forged, "TOKEN_INVALID"),
    "unsigned": (unsigned, "TOKEN_INVALID"),
    "signed with the public key": (signed_with_the_public_key, "TOKEN_INVALID"),
    "of another issuer": (lambda world: world.issuer.token(iss="https://other"), "TOKEN_ISSUER_UNKNOWN"),
    "for another audience": (lambda world: world.issuer.token(aud="other"), "TOKEN_AUDIENCE_WRONG"),
    "of an unknown key": (lambda world: world.issuer.token(headers={"kid": "two"}), "TOKEN_KEY_UNKNOWN"),
    "without an end": (lambda world: world.issuer.token(exp=None), "TOKEN_CLAIM_INVALID"),
    "without a client": (lambda world: world.issuer.token(client=None), "TOKEN_CLAIM_INVALID"),
    "with a client that is no name": (lambda world: world.issuer.token(client="../x"), "TOKEN_CLAIM_INVALID"),
    "with a role that is none": (lambda world: world.issuer.token(role="root"), "TOKEN_CLAIM_INVALID"),
    "not yet valid": (lambda world: world.issuer.token(nbf=int(time.time()) + 3600), "TOKEN_NOT_YET_VALID"),
    "a bomb of brackets": (
        lambda world: jwt.utils.base64url_encode(b"[" * 5000).decode() + ".e30.AAAA",
        "TOKEN_INVALID",
    ),
    "garbage": (lambda world: "a.b.c", "TOKEN_INVALID"),
    "huge": (lambda world: "x" * 9000, "TOKEN_INVALID"),
    "empty": (lambda world: "", "TOKEN_MISSING"),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
async def test_a_bad_token_is_refused(world: World, case: str) -> None:
    make, reason = BAD_TOKENS[case]

    error = await refused(
        world.sandboxes.Get(
            pb.GetRequest(name="sandboxes/sbx-1"), metadata=(("authorization", f"Bearer {make(world)}"),)
        )
    )

    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)


@pytest.mark.parametrize("metadata", [(), (("authorization", "Basic Ym9zczpwdw=="),)])
async def test_a_call_without_a_bearer_token_is_refused(world: World, metadata: tuple[Any, ...]) -> None:
    error = await refused(world.sandboxes.List(pb.ListRequest(), metadata=metadata))

    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")


async def test_who_is_not_known_learns_nothing_about_the_request(world: World) -> None:
    error = await refused(world.sandboxes.Get(pb.GetRequest(name="not a name")))

    assert (error.code, error.fields) == (grpc.StatusCode.UNAUTHENTICATED, [])


async def test_a_sandbox_of_another_client_is_not_found(world: World) -> None:
    error = await refused(
        world.sandboxes.Get(pb.GetRequest(name="sandboxes/sbx-1"), metadata=world.metadata(client="other"))
    )

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SANDBOX_NOT_FOUND")


async def test_a_role_that_may_not_call_is_told_which_may(world: World) -> None:
    error = await refused(
        world.sandboxes.Pause(
            # Not even the rules of the request are looked at.
            pb.PauseRequest(name="not a name"),
            metadata=world.metadata(role="auditor"),
        )
    )

    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_FORBIDDEN")
    assert dict(error.info.metadata) == {
        "method": "sandboxd.v1.SandboxService/Pause",
        "role": "auditor",
        "allowed_roles": "platform, client_admin, freelancer",
    }
    assert "platform, client_admin, freelancer" in error.message
    assert await world.sandboxes.Get(pb.GetRequest(name="sandboxes/sbx-1"), metadata=world.metadata(role="auditor"))


async def test_a_new_key_set_file_is_read_without_a_restart(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        new = Issuer(tmp_path / "keys.json", key_id="two")

        async def accepted() -> bool:
            try:
                await world.sandboxes.List(pb.ListRequest(), metadata=(("authorization", f"Bearer {new.token()}"),))
            except grpc.aio.AioRpcError:
                return False
            return True

        assert await eventually(accepted, within=10, every=0.1)


# ------------------------------------------------------------------------------------------------ idempotence


async def test_a_repeated_create_makes_one_sandbox_and_answers_the_same(world: World) -> None:
    first = pb.CreateRequest(request_id="request-1", sandbox=pb.Sandbox(display_name="a", labels={"b": "1", "a": "2"}))
    again = pb.CreateRequest(
        request_id="request-1",
        # Output-only fields are ignored, so they make no other request of it.
        sandbox=pb.Sandbox(
            display_name="a", labels={"a": "2", "b": "1"}, name="sandboxes/x", etag="7", state=pb.SANDBOX_STATE_ACTIVE
        ),
    )

    one = await world.sandboxes.Create(first, metadata=world.metadata())
    two = await world.sandboxes.Create(again, metadata=world.metadata())

    assert one == two
    assert len(world.manager.sandboxes) == 2


async def test_a_request_id_with_another_body_is_invalid(world: World) -> None:
    await world.sandboxes.Create(pb.CreateRequest(request_id="request-1"), metadata=world.metadata())

    error = await refused(
        world.sandboxes.Create(
            pb.CreateRequest(request_id="request-1", sandbox=pb.Sandbox(model="gemini-2.5-pro")),
            metadata=world.metadata(),
        )
    )

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert error.fields == ["request_id"]


async def test_a_request_id_of_one_method_cannot_answer_another(world: World) -> None:
    await world.sandboxes.Pause(
        pb.PauseRequest(request_id="request-1", name="sandboxes/sbx-1"), metadata=world.metadata()
    )

    error = await refused(
        world.sandboxes.Resume(
            pb.ResumeRequest(request_id="request-1", name="sandboxes/sbx-1"), metadata=world.metadata()
        )
    )

    assert error.reason == "REQUEST_ID_REUSED"


# ------------------------------------------------------------------------------------------------ the rest


async def test_a_call_without_a_deadline_gets_ours(tmp_path: Path) -> None:
    async with a_world(tmp_path, limits=ServerLimits(default_deadline=timedelta(milliseconds=50))) as world:
        world.manager.hanging = True

        error = await refused(world.sandboxes.List(pb.ListRequest(), metadata=world.metadata()))

    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


async def test_the_work_gets_what_is_left_of_the_callers_deadline(world: World) -> None:
    await world.sandboxes.Create(pb.CreateRequest(request_id="request-1"), metadata=world.metadata(), timeout=7)

    assert timedelta(seconds=6) < world.manager.timeouts[0] < timedelta(seconds=7.5)


async def test_a_watcher_gets_the_present_the_mark_and_then_changes(world: World) -> None:
    call = world.sandboxes.Watch(pb.WatchRequest(), metadata=world.metadata())

    present, synced = await call.read(), await call.read()
    world.manager.changes.put_nowait(
        SandboxChange(kind=ChangeKind.UPDATED, sandbox=replace(a_sandbox(), display_name="changed"))
    )
    changed = await call.read()

    assert (present.change, present.sandbox.name) == (pb.WatchResponse.CHANGE_PRESENT, "sandboxes/sbx-1")
    assert synced == pb.WatchResponse(change=pb.WatchResponse.CHANGE_SYNCED)
    assert (changed.change, changed.sandbox.display_name) == (pb.WatchResponse.CHANGE_UPDATED, "changed")


async def test_health_and_reflection_need_no_token(world: World) -> None:
    health: Any = health_pb2_grpc.HealthStub(world.channel)

    def reflect() -> list[str]:
        with grpc.insecure_channel(f"127.0.0.1:{world.port}") as channel:
            return list(ProtoReflectionDescriptorDatabase(channel).get_services())

    for service in ("", *SERVICES):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert set(SERVICES) <= set(await asyncio.to_thread(reflect))


async def test_history_is_paged_by_sequence(world: World) -> None:
    call = world.stream()
    await call.write(stream_pb2.StreamRequest(request_id="request-1", open=stream_pb2.Open(sandbox="sandboxes/sbx-1")))
    await call.write(stream_pb2.StreamRequest(request_id="request-2", prompt=stream_pb2.Prompt(text="a b c")))
    await call.done_writing()
    async for _ in call:
        pass

    pages, after = [], 0
    while True:
        page = await world.sessions.GetHistory(
            session_pb2.GetHistoryRequest(name="sandboxes/sbx-1/sessions/ses-1", after_sequence=after, page_size=2),
            metadata=world.metadata(),
        )
        pages.append([event.sequence for event in page.events])
        if not (after := page.next_after_sequence):
            break

    assert pages == [[1, 2], [3, 4], [5, 6]]


async def test_a_usage_page_token_of_another_list_is_refused(world: World) -> None:
    error = await refused(
        world.usage.ListUsageEvents(
            usage_pb2.ListUsageEventsRequest(page_token="AAAAAAAAAAAAAAAAAAAA"), metadata=world.metadata()
        )
    )

    assert error.fields == ["page_token"]


async def test_the_metrics_count_calls_by_method_and_code(world: World) -> None:
    await refused(world.sandboxes.Get(pb.GetRequest(name="sandboxes/none"), metadata=world.metadata()))

    labels = {"method": "sandboxd.v1.SandboxService/Get", "code": "NOT_FOUND"}
    await eventually(lambda: world.registry.get_sample_value("sandboxd_grpc_handled_total", labels) == 1, within=5)


async def test_the_canonical_line_names_the_call_and_no_secret(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    request = pb.CreateRequest(request_id="request-7", sandbox=pb.Sandbox(display_name="canary-of-a-text"))

    await world.sandboxes.Create(request, metadata=world.metadata())

    lines = [line for line in capsys.readouterr().out.splitlines() if "SandboxService/Create" in line]
    assert len(lines) == 1
    for word in ("code", "OK", "duration_ms", "acme", "boss", "request-7"):
        assert word in lines[0]
    assert "canary-of-a-text" not in lines[0]
    assert world.token not in lines[0]


async def test_two_servers_on_one_port_fail_clearly(world: World, tmp_path: Path) -> None:
    async with a_world(tmp_path) as other:
        with pytest.raises(OSError, match=f"127.0.0.1:{world.port}"):
            other.server.listen(f"127.0.0.1:{world.port}", tls=None)


async def test_garbage_on_the_port_does_no_harm(world: World) -> None:
    for garbage in (
        b"\x00" * 4096,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 999,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(garbage)
        await writer.drain()
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), timeout=10)
        writer.close()

    answer = await world.sandboxes.Get(pb.GetRequest(name="sandboxes/sbx-1"), metadata=world.metadata())
    assert answer.sandbox.name == "sandboxes/sbx-1"


async def test_a_request_whose_bytes_are_no_message_is_refused_and_not_served(world: World) -> None:
    raw: Any = world.channel.unary_unary("/sandboxd.v1.SandboxService/Get")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw(b"\xff\xff\xff\xff", metadata=world.metadata())

    error = refusal_of(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")


async def test_a_message_above_the_limit_is_refused(world: World) -> None:
    request = pb.CreateRequest(request_id="request-1", sandbox=pb.Sandbox(display_name="x" * (17 << 20)))

    error = await refused(world.sandboxes.Create(request, metadata=world.metadata()))

    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_with_tls_the_server_proves_who_it_is_and_plain_text_is_refused(tmp_path: Path) -> None:
    certificate, key = a_certificate(tmp_path)
    trusted = grpc.ssl_channel_credentials(root_certificates=certificate.read_bytes())

    async with a_world(tmp_path, tls=TlsFiles(certificate=certificate, key=key)) as world:
        address, metadata = f"localhost:{world.tls_port}", world.metadata()
        async with grpc.aio.secure_channel(address, trusted) as channel:
            stub: Any = sandbox_pb2_grpc.SandboxServiceStub(channel)
            answer = await stub.List(pb.ListRequest(), metadata=metadata)
        async with grpc.aio.insecure_channel(address) as plain:
            stub = sandbox_pb2_grpc.SandboxServiceStub(plain)
            error = await refused(stub.List(pb.ListRequest(), metadata=metadata, timeout=5))

    assert answer == pb.ListResponse()
    assert error.code is grpc.StatusCode.UNAVAILABLE


def a_certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "server.pem", folder / "server.key"
    files[0].write_bytes(made.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files
