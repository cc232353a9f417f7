"""The registry that the settings name, as OCI distribution or as Harbor, and where each client's images lie in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from sandboxd.backends.kubernetes.pull_accounts import SecretPullAccounts
from sandboxd.backends.registry.access import RegistryAccount
from sandboxd.backends.registry.client import OciRegistry
from sandboxd.backends.registry.harbor import HarborProjects, HarborRules
from sandboxd.backends.registry.harbor_api import HarborApi
from sandboxd.backends.registry.harbor_registry import HarborRegistry
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.images.projects import ImageProjects, PullAccounts
from sandboxd.images.registry import Registry
from sandboxd.images.upload_notes import UploadNotes
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.image_names import user_project, user_repository
from sandboxd.settings import Settings, SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryRoom:
    """A registry, and how clients are kept apart in it."""

    registry: Registry
    repository_of: Callable[[ClientId, FreelancerId], str]
    projects: ImageProjects | None
    """None where it has nothing of that."""
    close: Callable[[], Awaitable[None]]
    """Gives up its connections."""


def make_registry(
    settings: Settings, *, cluster: KubeApi | None = None, uploads: UploadNotes | None = None
) -> RegistryRoom:
    """Make the client of the registry that the settings name. Nothing connects yet.

    Raises:
        SettingsError: They name Harbor and no account.
    """
    password = settings.images_registry_password
    account = (
        RegistryAccount(name=settings.images_registry_user, password=password.get_secret_value()) if password else None
    )
    if settings.images_registry_kind == "harbor":
        if account is None:
            raise SettingsError("The settings cannot be used:\n  SANDBOXD_IMAGES_REGISTRY_USER: Harbor's API needs it")
        return _harbor(settings, account, cluster, uploads)
    registry = OciRegistry(
        _address(settings),
        plain=settings.images_registry_plain,
        authority=settings.images_registry_authority_file,
        account=account,
        uploads=uploads,
    )
    return RegistryRoom(
        registry=registry,
        repository_of=partial(user_repository, prefix=settings.images_repository_prefix),
        projects=None,
        close=registry.close,
    )


def _harbor(
    settings: Settings, account: RegistryAccount, cluster: KubeApi | None, uploads: UploadNotes | None
) -> RegistryRoom:
    address, plain, authority = (
        _address(settings),
        settings.images_registry_plain,
        settings.images_registry_authority_file,
    )
    prefix = settings.images_repository_prefix
    api = HarborApi(address, plain=plain, authority=authority, account=account)
    registry = HarborRegistry(address, api=api, plain=plain, authority=authority, account=account, uploads=uploads)
    rules = HarborRules(
        prefix=prefix,
        quota_bytes=settings.images_harbor_project_bytes,
        untagged_days=settings.images_harbor_untagged_days,
        account_days=settings.images_harbor_account_days,
        collect_cron=settings.images_harbor_gc_schedule,
    )
    projects = HarborProjects(api, rules=rules, accounts=_accounts(settings, cluster), clock=SystemClock())

    def repository_of(client: ClientId, freelancer: FreelancerId) -> str:
        return user_repository(client, freelancer, prefix=user_project(client, prefix=prefix))

    async def close() -> None:
        await registry.close()
        await projects.close()

    return RegistryRoom(registry=registry, repository_of=repository_of, projects=projects, close=close)


def _accounts(settings: Settings, cluster: KubeApi | None) -> PullAccounts | None:
    if cluster is None or not settings.image_pulls_secret:
        return None
    return SecretPullAccounts(
        cluster,
        namespace=settings.kubernetes_namespace,
        secret=settings.image_pulls_secret,
        registry=settings.images_registry,
    )


def _address(settings: Settings) -> str:
    return settings.images_registry_address or settings.images_registry
