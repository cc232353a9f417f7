"""The tables, as SQLAlchemy knows them. Nothing is loaded lazily: rows are read by explicit queries.

What the tables are in the database is said by the migrations (`alembic/`); a test holds that both agree.
"""

from sandboxd.persistence.tables.abandoned import AbandonedLookRow, AbandonedSightingRow
from sandboxd.persistence.tables.accounts import ClientRow, FreelancerRow, TurnPlaceRow
from sandboxd.persistence.tables.audit import (
    AuditChainRow,
    AuditEntryRow,
    AuditHeadRow,
    AuditOpenIntentRow,
    AuditTextRow,
)
from sandboxd.persistence.tables.backups import BackupSetRow
from sandboxd.persistence.tables.base import Base
from sandboxd.persistence.tables.budgets import BudgetAccountRow, BudgetNoticeRow, BudgetRow
from sandboxd.persistence.tables.conversations import (
    CommandRow,
    ConversationRow,
    EventRow,
    SessionRow,
    StdinRecordRow,
    TurnAttachmentRow,
    TurnRow,
)
from sandboxd.persistence.tables.drills import RestoreDrillRow
from sandboxd.persistence.tables.erasures import ApiKeyRow, ErasureRow
from sandboxd.persistence.tables.images import ImageGenerationRow, ImageSbomRow, ImageSightingRow
from sandboxd.persistence.tables.lifecycle import DutyRow, SandboxLookRow
from sandboxd.persistence.tables.packages import PackageChangeRow, SandboxPackagesRow
from sandboxd.persistence.tables.pools import PoolMemberRow, PoolRow
from sandboxd.persistence.tables.push_holds import ImagePushRow, PushHoldRow
from sandboxd.persistence.tables.replicas import ReplicaRow
from sandboxd.persistence.tables.resources import UsageIntervalRow
from sandboxd.persistence.tables.sandboxes import IncarnationRow, OperationRow, RequestRow, SandboxRow
from sandboxd.persistence.tables.uploads import ImageUploadRow
from sandboxd.persistence.tables.usage import GatewayRow, PriceRow, UsageEventRow

__all__ = [
    "AbandonedLookRow",
    "AbandonedSightingRow",
    "ApiKeyRow",
    "AuditChainRow",
    "AuditEntryRow",
    "AuditHeadRow",
    "AuditOpenIntentRow",
    "AuditTextRow",
    "BackupSetRow",
    "Base",
    "BudgetAccountRow",
    "BudgetNoticeRow",
    "BudgetRow",
    "ClientRow",
    "CommandRow",
    "ConversationRow",
    "DutyRow",
    "ErasureRow",
    "EventRow",
    "FreelancerRow",
    "GatewayRow",
    "ImageGenerationRow",
    "ImagePushRow",
    "ImageSbomRow",
    "ImageSightingRow",
    "ImageUploadRow",
    "IncarnationRow",
    "OperationRow",
    "PackageChangeRow",
    "PoolMemberRow",
    "PoolRow",
    "PriceRow",
    "PushHoldRow",
    "ReplicaRow",
    "RequestRow",
    "RestoreDrillRow",
    "SandboxLookRow",
    "SandboxPackagesRow",
    "SandboxRow",
    "SessionRow",
    "StdinRecordRow",
    "TurnAttachmentRow",
    "TurnPlaceRow",
    "TurnRow",
    "UsageEventRow",
    "UsageIntervalRow",
]
