"""kvferry: moves the KV cache of a request from the worker that prefilled it to the worker that decodes it.

The names below are the public interface; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvferry.core.dense import DenseModel as DenseModel
    from kvferry.core.dense import dense_layout as dense_layout
    from kvferry.core.errors import (
        BlockError as BlockError,
    )
    from kvferry.core.errors import (
        CallerError as CallerError,
    )
    from kvferry.core.errors import (
        Cancelled as Cancelled,
    )
    from kvferry.core.errors import (
        DataPlaneLost as DataPlaneLost,
    )
    from kvferry.core.errors import (
        DeadlineExceeded as DeadlineExceeded,
    )
    from kvferry.core.errors import (
        Fenced as Fenced,
    )
    from kvferry.core.errors import (
        InternalError as InternalError,
    )
    from kvferry.core.errors import (
        KvferryError as KvferryError,
    )
    from kvferry.core.errors import (
        KvGoneError as KvGoneError,
    )
    from kvferry.core.errors import (
        LeaseEnded as LeaseEnded,
    )
    from kvferry.core.errors import (
        NotReady as NotReady,
    )
    from kvferry.core.errors import (
        OperatorError as OperatorError,
    )
    from kvferry.core.errors import (
        PeerError as PeerError,
    )
    from kvferry.core.errors import (
        RetryableError as RetryableError,
    )
    from kvferry.core.errors import (
        StaleIncarnation as StaleIncarnation,
    )
    from kvferry.core.layouts import ElementType as ElementType
    from kvferry.core.layouts import GroupPlacement as GroupPlacement
    from kvferry.core.layouts import LayerGroup as LayerGroup
    from kvferry.core.layouts import RankLayout as RankLayout
    from kvferry.core.layouts import Strides as Strides
    from kvferry.core.layouts import WorkerLayout as WorkerLayout
    from kvferry.core.reasons import Actor as Actor
    from kvferry.core.reasons import Reason as Reason
    from kvferry.sdk.engine import EngineClient as EngineClient
    from kvferry.sdk.events import PoolLost as PoolLost
    from kvferry.sdk.events import PoolRestored as PoolRestored
    from kvferry.sdk.events import PublicationEnded as PublicationEnded
    from kvferry.sdk.failures import PullFailed as PullFailed
    from kvferry.sdk.failures import destination_settled as destination_settled
    from kvferry.sdk.pools import AttachedPool as AttachedPool
    from kvferry.sdk.pools import PoolInfo as PoolInfo
    from kvferry.sdk.pulls import Pull as Pull
    from kvferry.sdk.results import (
        ClusterView as ClusterView,
    )
    from kvferry.sdk.results import (
        Mismatch as Mismatch,
    )
    from kvferry.sdk.results import (
        Pair as Pair,
    )
    from kvferry.sdk.results import (
        Path as Path,
    )
    from kvferry.sdk.results import (
        Publication as Publication,
    )
    from kvferry.sdk.results import (
        PublicationState as PublicationState,
    )
    from kvferry.sdk.results import (
        Rank as Rank,
    )
    from kvferry.sdk.results import (
        RankFigures as RankFigures,
    )
    from kvferry.sdk.results import (
        Role as Role,
    )
    from kvferry.sdk.results import (
        TransferResult as TransferResult,
    )
    from kvferry.sdk.results import (
        TransferState as TransferState,
    )
    from kvferry.sdk.results import (
        Worker as Worker,
    )
    from kvferry.sdk.results import (
        WorkerState as WorkerState,
    )
    from kvferry.sdk.router import RouterClient as RouterClient
    from kvferry.sdk.sync import SyncEngineClient as SyncEngineClient
    from kvferry.sdk.sync import SyncPull as SyncPull
    from kvferry.sdk.sync import SyncRouterClient as SyncRouterClient
    from kvferry.sdk.sync import SyncWorkerClient as SyncWorkerClient
    from kvferry.sdk.worker_client import WorkerClient as WorkerClient

    __version__: str

_HOMES = {
    "kvferry.core.dense": ("DenseModel", "dense_layout"),
    "kvferry.core.errors": (
        "BlockError",
        "CallerError",
        "Cancelled",
        "DataPlaneLost",
        "DeadlineExceeded",
        "Fenced",
        "InternalError",
        "KvGoneError",
        "KvferryError",
        "LeaseEnded",
        "NotReady",
        "OperatorError",
        "PeerError",
        "RetryableError",
        "StaleIncarnation",
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
    "kvferry.sdk.events": ("PoolLost", "PoolRestored", "PublicationEnded"),
    "kvferry.sdk.failures": ("PullFailed", "destination_settled"),
    "kvferry.sdk.pools": ("AttachedPool", "PoolInfo"),
    "kvferry.sdk.pulls": ("Pull",),
    "kvferry.sdk.results": (
        "ClusterView",
        "Mismatch",
        "Pair",
        "Path",
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
