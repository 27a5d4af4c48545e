"""The keys of a data plane's configuration."""

from kvferry.config.flags import Program
from kvferry.config.keys import Key
from kvferry.core.backends import Backend, NixlBackend
from kvferry.logs import FORMATS
from kvferry_dataplane.paths import PackWire, PathRule, SameHost

LOG_LEVELS = ("debug", "info", "warning", "error")

_PROCESS = (
    Key("device", "DEVICE", "cpu or cuda:N (default: cpu)", "cpu"),
    Key("pool_bytes", "SIZE", "size of the pool, for example 1GiB", required=True),
    Key("socket", "PATH", "Unix socket for control; engines use PATH.pool", required=True),
    Key("metrics_listen", "HOST:PORT", "serve Prometheus metrics here (default: not at all)"),
    Key("log_format", "FORMAT", f"{', '.join(FORMATS)} (default: auto)", "auto"),
    Key("log_level", "LEVEL", f"{', '.join(LOG_LEVELS)} (default: info)", "info"),
)
_BOUNDS = (
    Key("max_leases", "N", "leases that can hold at a time (default: 16384)", "16384"),
    Key("max_reads", "N", "reads queued or running, of one source 4/5 (default: 4096)", "4096"),
    Key(
        "max_outstanding_bytes",
        "SIZE",
        "bytes of queued and running reads (default: no bound but the pool)",
        "1024TiB",
    ),
    Key("copy_threads", "N", "threads that copy between pools of host memory (default: auto)", "auto"),
    Key("sm_count", "N", "GPU multiprocessors that copies may take (default: all)", "all"),
    Key(
        "poll_time",
        "SECONDS",
        "look for control's next message for so long before sleeping, unless other threads have work (default: 0)",
        "0",
    ),
    Key("checksums", "SHARE", "off, full, sampled:N: sum what is published (default: off)", "off"),
)
_PATHS = (
    Key(
        "backend",
        "NAME",
        f"{', '.join(Backend)}: what moves bytes between hosts (default: DEFAULT, which is NIXL with UCX)",
        Backend.DEFAULT.value,
    ),
    Key("nixl_backend", "NAME", f"{', '.join(NixlBackend)}: what NIXL stands on (default: UCX)"),
    Key("ucx_library", "FILE", "the libucp.so.0 of backend UCX (default: the system's, else that of the libucx wheel)"),
    Key("trtllm_config", "FILE", "an engine's YAML file of TensorRT-LLM, whose cache_transceiver_config is followed"),
    Key("path", "PATH", f"{', '.join(PathRule)}: force one (default: auto)", PathRule.AUTO.value),
    Key(
        "same_host",
        "HOW",
        f"{', '.join(SameHost)}: map pools of this host and copy; never map them; neither map nor show one's own "
        "(default: fused)",
        SameHost.FUSED.value,
    ),
    Key(
        "pack_wire",
        "HOW",
        f"{', '.join(PackWire)}: how packed chunks travel (default: auto, nixl where there is RDMA)",
        PackWire.AUTO.value,
    ),
    Key("pack_listen", "HOST:PORT", "pack small pieces for readers of other hosts here (default: not)"),
    Key("pack_advertise", "HOST:PORT", "where readers find that (default: as in --pack-listen)"),
    Key(
        "pack_congestion",
        "NAME",
        "congestion control for packed bytes (default: auto, the system's, or in place of bbr cubic or reno)",
        "auto",
    ),
)
_ENDS = (
    Key(
        "drain_timeout",
        "SECONDS",
        "after SIGTERM, stay so long for control, leases and reads; more than control's (default: 90; 0: end now)",
        "90",
    ),
    Key(
        "stall_timeout",
        "SECONDS",
        "a thread that does not answer for so long is stuck: the health service says NOT_SERVING (default: 10)",
        "10",
    ),
)

PROGRAM = Program(
    "kvferry dataplane",
    "Owns a pool of KV memory, lets peers read it, and reads theirs.",
    (*_PROCESS, *_BOUNDS, *_PATHS, *_ENDS),
)
