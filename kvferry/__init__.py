"""kvferry: moves the KV cache of a request from the worker that prefilled it to the worker that decodes it.

The names below are the public interface; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvferry.core.dense import DenseModel as DenseModel, dense_layout as dense_layout
    from kvferry.core.errors import (
        AddressInUse as AddressInUse,
        BlockError as BlockError,
        CallerError as CallerError,
        Cancelled as Cancelled,
        ChecksumMismatch as ChecksumMismatch,
        ChecksumsAbsent as ChecksumsAbsent,
        ConfigInvalid as ConfigInvalid,
        DataPlaneLost as DataPlaneLost,
        DeadlineExceeded as DeadlineExceeded,
        Draining as Draining,
        Fenced as Fenced,
        HandleForged as HandleForged,
        HandleMalformed as HandleMalformed,
        InternalError as InternalError,
        InvalidArgument as InvalidArgument,
        KvferryError as KvferryError,
        KvGoneError as KvGoneError,
        LayoutInvalid as LayoutInvalid,
        LayoutMismatch as LayoutMismatch,
        LeaseEnded as LeaseEnded,
        MessageTooLarge as MessageTooLarge,
        NotFound as NotFound,
        NotReady as NotReady,
        OperatorError as OperatorError,
        PathRefused as PathRefused,
        PeerError as PeerError,
        PermissionDenied as PermissionDenied,
        PoolTooLarge as PoolTooLarge,
        QueueTimeout as QueueTimeout,
        RequestIdReused as RequestIdReused,
        ResourceExhausted as ResourceExhausted,
        RetryableError as RetryableError,
        StaleIncarnation as StaleIncarnation,
        TransportFailed as TransportFailed,
        TransportMismatch as TransportMismatch,
        WorkerNameTaken as WorkerNameTaken,
    )
    from kvferry.core.layouts import (
        ElementType as ElementType,
        GroupPlacement as GroupPlacement,
        LayerGroup as LayerGroup,
        RankLayout as RankLayout,
        Strides as Strides,
        WorkerLayout as WorkerLayout,
    )
    from kvferry.core.reasons import Actor as Actor, Reason as Reason
    from kvferry.sdk.engine import EngineClient as EngineClient
    from kvferry.sdk.events import (
        PoolLost as PoolLost,
        PoolRestored as PoolRestored,
        PublicationEnded as PublicationEnded,
        WorkerDraining as WorkerDraining,
    )
    from kvferry.sdk.failures import PullFailed as PullFailed, destination_settled as destination_settled
    from kvferry.sdk.handles import join_handles as join_handles
    from kvferry.sdk.pools import AttachedPool as AttachedPool, PoolInfo as PoolInfo
    from kvferry.sdk.pulls import Pull as Pull
    from kvferry.sdk.results import (
        Attempt as Attempt,
        AttestedRoute as AttestedRoute,
        ClusterView as ClusterView,
        Drain as Drain,
        DrainState as DrainState,
        HeldPublication as HeldPublication,
        Mismatch as Mismatch,
        Pair as Pair,
        Path as Path,
        PathFigures as PathFigures,
        Publication as Publication,
        PublicationState as PublicationState,
        Rank as Rank,
        RankFigures as RankFigures,
        Role as Role,
        TransferResult as TransferResult,
        TransferState as TransferState,
        Worker as Worker,
        WorkerState as WorkerState,
    )
    from kvferry.sdk.router import RouterClient as RouterClient
    from kvferry.sdk.sync import (
        SyncEngineClient as SyncEngineClient,
        SyncPull as SyncPull,
        SyncRouterClient as SyncRouterClient,
        SyncWorkerClient as SyncWorkerClient,
    )
    from kvferry.sdk.worker_client import WorkerClient as WorkerClient

    __version__: str

_HOMES = {
    "kvferry.core.dense": ("DenseModel", "dense_layout"),
    "kvferry.core.errors": (
        "AddressInUse",
        "BlockError",
        "CallerError",
        "Cancelled",
        "ChecksumMismatch",
        "ChecksumsAbsent",
        "ConfigInvalid",
        "DataPlaneLost",
        "DeadlineExceeded",
        "Draining",
        "Fenced",
        "HandleForged",
        "HandleMalformed",
        "InternalError",
        "InvalidArgument",
        "KvGoneError",
        "KvferryError",
        "LayoutInvalid",
        "LayoutMismatch",
        "LeaseEnded",
        "MessageTooLarge",
        "NotFound",
        "NotReady",
        "OperatorError",
        "PathRefused",
        "PeerError",
        "PermissionDenied",
        "PoolTooLarge",
        "QueueTimeout",
        "RequestIdReused",
        "ResourceExhausted",
        "RetryableError",
        "StaleIncarnation",
        "TransportFailed",
        "TransportMismatch",
        "WorkerNameTaken",
    ),
    "kvferry.core.layouts": (
        "ElementType",
        "GroupPlacement",
        "LayerGroup",
        "RankLayout",
        "Strides",
        "WorkerLayout",
    ),
    "kvferry.core.reasons": ("Actor", "Reason"),
    "kvferry.sdk.engine": ("EngineClient",),
    "kvferry.sdk.events": ("PoolLost", "PoolRestored", "PublicationEnded", "WorkerDraining"),
    "kvferry.sdk.failures": ("PullFailed", "destination_settled"),
    "kvferry.sdk.handles": ("join_handles",),
    "kvferry.sdk.pools": ("AttachedPool", "PoolInfo"),
    "kvferry.sdk.pulls": ("Pull",),
    "kvferry.sdk.results": (
        "Attempt",
        "AttestedRoute",
        "ClusterView",
        "Drain",
        "DrainState",
        "HeldPublication",
        "Mismatch",
        "Pair",
        "Path",
        "PathFigures",
        "Publication",
        "PublicationState",
        "Rank",
        "RankFigures",
        "Role",
        "TransferResult",
        "TransferState",
        "Worker",
        "WorkerState",
    ),
    "kvferry.sdk.router": ("RouterClient",),
    "kvferry.sdk.sync": ("SyncEngineClient", "SyncPull", "SyncRouterClient", "SyncWorkerClient"),
    "kvferry.sdk.worker_client": ("WorkerClient",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_MODULES, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    metadata = import_module("importlib.metadata")
    try:
        return str(metadata.version("kvferry"))
    except metadata.PackageNotFoundError:
        return "0+source"
