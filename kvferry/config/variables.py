"""Every variable ``KVFERRY_*`` that means something to a process, and the refusal of all others.

Processes of one worker are often started in one environment, so each has to know the others' names. A process's own
follow from its keys; a test compares.
"""

import re
from collections.abc import Mapping, Sequence

from kvferry.config.keys import PREFIX, Key
from kvferry.config.nearest import unknown
from kvferry.config.values import Origin, Source, Value

DATA_PLANE = frozenset(
    {
        "KVFERRY_BACKEND",
        "KVFERRY_CHECKSUMS",
        "KVFERRY_COPY_THREADS",
        "KVFERRY_DEVICE",
        "KVFERRY_DRAIN_TIMEOUT",
        "KVFERRY_LOG_FORMAT",
        "KVFERRY_LOG_LEVEL",
        "KVFERRY_MAX_LEASES",
        "KVFERRY_MAX_OUTSTANDING_BYTES",
        "KVFERRY_MAX_READS",
        "KVFERRY_METRICS_LISTEN",
        "KVFERRY_NIXL_BACKEND",
        "KVFERRY_PACK_ADVERTISE",
        "KVFERRY_PACK_CONGESTION",
        "KVFERRY_PACK_LISTEN",
        "KVFERRY_PACK_WIRE",
        "KVFERRY_PATH",
        "KVFERRY_POLL_TIME",
        "KVFERRY_POOL_BYTES",
        "KVFERRY_SAME_HOST",
        "KVFERRY_SM_COUNT",
        "KVFERRY_SOCKET",
        "KVFERRY_STALL_TIMEOUT",
        "KVFERRY_TRTLLM_CONFIG",
        "KVFERRY_UCX_LIBRARY",
    }
)
"""Of a data plane's keys."""
CONTROL = frozenset(
    {
        "KVFERRY_DRAIN_REMOTE",
        "KVFERRY_DRAIN_TIMEOUT_S",
        "KVFERRY_ETCD_CA_FILE",
        "KVFERRY_ETCD_CERT_FILE",
        "KVFERRY_ETCD_ENDPOINTS",
        "KVFERRY_ETCD_KEY_FILE",
        "KVFERRY_ETCD_LEASE_TTL_S",
        "KVFERRY_ETCD_PASSWORD_FILE",
        "KVFERRY_ETCD_PREFIX",
        "KVFERRY_ETCD_USER",
        "KVFERRY_HEALTH_STALL_S",
        "KVFERRY_LIMITS_ACTIVE_TRANSFERS",
        "KVFERRY_LIMITS_BLOCKS_PER_REQUEST",
        "KVFERRY_LIMITS_ENGINE_TIMEOUT_S",
        "KVFERRY_LIMITS_KEPT_PUBLICATIONS",
        "KVFERRY_LIMITS_KEPT_TRANSFERS",
        "KVFERRY_LIMITS_LIVE_PUBLICATIONS",
        "KVFERRY_LIMITS_POLL_S",
        "KVFERRY_LIMITS_SOURCE_TIME_SHARE",
        "KVFERRY_LIMITS_SPAN_BYTES",
        "KVFERRY_LIMITS_TIMEOUT_S",
        "KVFERRY_LIMITS_TOLD_READERS",
        "KVFERRY_LIMITS_TTL_S",
        "KVFERRY_LIMITS_WATCHERS",
        "KVFERRY_LOG_FORMAT",
        "KVFERRY_LOG_LEVEL",
        "KVFERRY_METRICS_LISTEN",
        "KVFERRY_RANKS",
        "KVFERRY_TRANSFERS_MIN_GBYTES_PER_S",
        "KVFERRY_TRANSFERS_REQUIRE_PATH",
        "KVFERRY_TRANSFERS_TIMEOUT_S",
        "KVFERRY_TRANSFERS_VERIFY",
        "KVFERRY_TRTLLM_CONFIG",
        "KVFERRY_WORKER_ADVERTISE",
        "KVFERRY_WORKER_ENGINE_SOCKET",
        "KVFERRY_WORKER_LISTEN",
        "KVFERRY_WORKER_NAME",
        "KVFERRY_WORKER_ROLE",
    }
)
"""Of a control's keys."""
OTHERS = frozenset(
    {
        "KVFERRY_ENDPOINT",  # of the command line: any control of the cluster
        "KVFERRY_HEALTH",  # of the command line: what `kvferry health` asks
        "KVFERRY_IMAGE",  # of compose.yaml
        "KVFERRY_UNSAFE_FOR_TESTS_SKIP_ROLLOVER",
    }
)
"""Of no file's keys."""
# A Kubernetes service named kvferry puts these into every container of its namespace.
_SERVICE_LINK = re.compile(
    r"KVFERRY_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def values_of_environment(environment: Mapping[str, str], keys: Sequence[Key]) -> dict[str, Value]:
    """The values of a process's keys that are set there; one that is empty counts as not set.

    Raises:
        ConfigInvalid: a variable ``KVFERRY_*`` means nothing to any process.
    """
    own = {key.variable: key for key in keys}
    known = own.keys() | DATA_PLANE | CONTROL | OTHERS
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known and not _SERVICE_LINK.fullmatch(name):
            raise unknown(name, known, "variable")
    return {
        key.name: Value(key.of_text(environment[name]), Origin(Source.ENVIRONMENT, name))
        for name, key in own.items()
        if environment.get(name)
    }
