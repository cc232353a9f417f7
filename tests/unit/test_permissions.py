"""The permission table: complete, without strangers, and what it answers."""

import importlib
import pkgutil

import pytest
from google.protobuf.descriptor import ServiceDescriptor

import sandboxd.v1
from sandboxd.api.grpc.permissions import (
    PERMISSIONS,
    ClientMissingError,
    Permission,
    RoleForbiddenError,
    Scope,
    permit,
    without_row,
)
from sandboxd.model.caller import Caller, Role
from sandboxd.model.ids import ClientId

GET, CREATE = "sandboxd.v1.SandboxService/Get", "sandboxd.v1.SandboxService/Create"


def every_service() -> list[ServiceDescriptor]:
    """The services of all protos of the package, also of those that nobody serves yet."""
    modules = [
        importlib.import_module(f"sandboxd.v1.{module.name}")
        for module in pkgutil.iter_modules(sandboxd.v1.__path__)
        if module.name.endswith("_pb2")
    ]
    return [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]


def a_caller(role: Role, *, client: str = "acme") -> Caller:
    return Caller(client=ClientId(client), subject="ada", role=role)


def test_every_rpc_has_a_row_and_every_row_an_rpc() -> None:
    methods = {f"{service.full_name}/{method.name}" for service in every_service() for method in service.methods}

    assert GET in methods
    assert without_row(every_service()) == [], "add the RPC's row to src/sandboxd/api/grpc/permissions.py"
    assert set(PERMISSIONS) - methods == set(), "rows of RPCs that are in no proto"


def test_an_rpc_whose_requests_have_a_request_id_is_a_mutating_one() -> None:
    for service in every_service():
        for method in service.methods:
            name = f"{service.full_name}/{method.name}"
            if not method.client_streaming:
                assert PERMISSIONS[name].mutating == ("request_id" in method.input_type.fields_by_name), name


def test_an_auditor_never_changes_anything() -> None:
    assert [name for name, row in PERMISSIONS.items() if row.mutating and Role.AUDITOR in row.roles] == []


def test_the_platform_may_call_everything() -> None:
    assert [name for name, row in PERMISSIONS.items() if Role.PLATFORM not in row.roles] == []


@pytest.mark.parametrize("role", list(Role))
def test_a_role_is_let_through_where_its_row_has_it(role: Role) -> None:
    for name, row in PERMISSIONS.items():
        if role in row.roles:
            assert permit(name, a_caller(role)) is row
        else:
            with pytest.raises(RoleForbiddenError) as refused:
                permit(name, a_caller(role))
            assert refused.value.metadata["method"] == name


def test_an_rpc_without_a_row_is_nobodys() -> None:
    with pytest.raises(RoleForbiddenError):
        permit("sandboxd.v1.SandboxService/Nothing", a_caller(Role.PLATFORM))


def test_who_acts_for_no_client_reaches_no_clients_things() -> None:
    wide = Permission(roles=frozenset({Role.PLATFORM, Role.AUDITOR}), mutating=False, scope=Scope.PLATFORM)
    table = {"Clients/List": wide}

    with pytest.raises(ClientMissingError):
        permit(GET, a_caller(Role.PLATFORM, client=""))
    with pytest.raises(ClientMissingError):
        permit("Clients/List", a_caller(Role.AUDITOR, client=""), table=table)
    assert permit("Clients/List", a_caller(Role.PLATFORM, client=""), table=table) is wide
