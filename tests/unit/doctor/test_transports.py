"""What NIXL's and UCX's own words mean."""

import pytest

from kvferry.core.backends import Transport
from kvferry.doctor import nixl, transports, ucx
from kvferry.doctor.child import Answer
from kvferry.doctor.findings import Status

REPORT = """#
# UCP context
#
#     component 0  :  self
#     component 1  :  tcp
#     component 2  :  cma
#     component 3  :  ib
#
#            md 0  :  component 1  tcp
#
#      resource 0  :  md 0  dev 0  flags -- self/memory
#      resource 1  :  md 1  dev 1  flags -- tcp/eth0
#      resource 2  :  md 1  dev 2  flags -- tcp/lo
#      resource 3  :  md 2  dev 0  flags -- cma/memory
#
"""
NO_CUDA = (
    "[179.3] [vm:1:0] module.c:265  UCX  DEBUG dlopen('/x/ucx/libuct_cuda.so.0.0.0', mode=0x1) failed: libcuda.so.1:"
    " cannot open shared object file: No such file or directory\n"
)
NO_IB = "[179.3] [vm:1:0] ib_md.c:891  UCX  DEBUG failed to get ib device list: no kernel support for rdma\n"
PLAIN = ucx.Surroundings(tls=None, has_rdma=False, has_driver=False)


def report_of(text: str = REPORT, log: str = NO_CUDA + NO_IB, error: str = "") -> ucx.Report:
    """As read from a child."""
    return ucx.read("libucp.so", Answer({"version": "1.23.0", "report": text, "error": error}, log, ""))


def without(*transports: str) -> str:
    """The report of a UCX that has not these."""
    return "\n".join(line for line in REPORT.splitlines() if not any(f"-- {name}/" in line for name in transports))


def test_transports_and_what_is_missing_are_read() -> None:
    """Devices are grouped by transport; modules that were not loaded have the loader's words."""
    report = report_of()
    assert {"self": ("memory",), "tcp": ("eth0", "lo"), "cma": ("memory",)} == report.transports
    assert ("self", "tcp", "cma", "ib") == report.components
    assert "failed to get ib device list: no kernel support for rdma" == report.missing["ib"]
    assert report.missing["cuda"].startswith("libcuda.so.1: cannot open")


@pytest.mark.parametrize(
    ("report", "around", "statuses"),
    [
        (report_of(), PLAIN, (Status.OK, Status.NONE, Status.NONE)),
        (
            report_of(without("cma", "self")),
            ucx.Surroundings("tcp", False, False),
            (Status.SLOW, Status.NONE, Status.NONE),
        ),
        (report_of(without("tcp")), ucx.Surroundings("cma", False, False), (Status.BROKEN, Status.NONE, Status.NONE)),
        (report_of(), ucx.Surroundings(None, True, True), (Status.OK, Status.BROKEN, Status.BROKEN)),
        (
            report_of(REPORT + "# resource 4  :  md 3  dev 3  flags -- rc_mlx5/mlx5_0:1\n"),
            ucx.Surroundings(None, True, False),
            (Status.OK, Status.OK, Status.NONE),
        ),
    ],
)
def test_a_report_is_judged_by_what_is_around(
    report: ucx.Report, around: ucx.Surroundings, statuses: tuple[Status, ...]
) -> None:
    """Missing RDMA or CUDA is a fault only where there are such devices."""
    assert statuses == tuple(finding.status for finding in ucx.judge(report, around))


def test_tcp_alone_is_blamed_on_the_setting() -> None:
    """The finding names UCX_TLS and what it leaves out."""
    (finding, *_) = ucx.judge(report_of(without("cma")), ucx.Surroundings("tcp", False, False))
    assert "UCX_TLS=tcp leaves out cma" in finding.found
    assert "unset UCX_TLS" in finding.do


def test_a_library_that_refuses_has_its_own_words() -> None:
    """What UCX wrote as errors is in the finding."""
    log = "[1] [vm:1:0] ucp_context.c:1770 UCX  ERROR no usable transports/devices (asked foo on network)\n"
    (finding,) = ucx.judge(report_of("", log, "No such device"), ucx.Surroundings("foo", False, False))
    assert Status.BROKEN == finding.status
    assert "No such device: no usable transports/devices (asked foo" in finding.found


def test_a_child_that_died_is_an_unusable_library() -> None:
    """How it ended is the error."""
    report = ucx.read("libucp.so", Answer({}, "", "killed by SIGSEGV"))
    assert "killed by SIGSEGV" in ucx.judge(report, PLAIN)[0].found


NIXL_LOG = (
    "I1129 18:48:05.2 15868 nixl_plugin_manager.cpp:352] Failed to load plugin from /x/plugins/libplugin_LIBFABRIC.so:"
    " libfabric.so.1: cannot open shared object file: No such file or directory\n"
    "I1129 18:48:05.2 15868 nixl_plugin_manager.cpp:352] Failed to load plugin from /x/plugins/libplugin_GDS.so:"
    " libcufile.so.0: cannot open shared object file: No such file or directory\n"
)
NIXL_ANSWER = {"wheel": "nixl_cu13", "plugins": ["GDS", "LIBFABRIC", "POSIX", "UCX"], "loaded": ["POSIX", "UCX"]}


def test_plugins_have_the_loaders_words() -> None:
    """A plugin that is not needed and does not load is no fault."""
    finding = nixl.judge(nixl.read(Answer(NIXL_ANSWER, NIXL_LOG, "")), Transport.NIXL_UCX)
    assert Status.OK == finding.status
    assert "LIBFABRIC does not by itself: no libfabric.so.1" in finding.found
    refused = finding.values["refused"]
    assert isinstance(refused, dict)
    assert "libcufile.so.0: cannot open shared object file: No such file or directory" == refused["GDS"]


def test_a_missing_plugin_is_broken_where_it_is_needed() -> None:
    """The finding names the library to install; backend UCX needs no plugin."""
    plugins = nixl.Plugins("nixl_cu13", (), {"UCX": "libibverbs.so.1: cannot open shared object file: No such file"})
    finding = nixl.judge(plugins, Transport.NIXL_UCX)
    assert (Status.BROKEN, True) == (finding.status, "install the library libibverbs.so.1" in finding.do)
    assert Status.OK == nixl.judge(plugins, Transport.UCX).status


def test_a_plugin_without_a_reason_says_so() -> None:
    """Where NIXL's lines are missing, that is what is told."""
    plugins = nixl.read(Answer(NIXL_ANSWER, "", ""))
    assert "does not say why" in plugins.refused["LIBFABRIC"]


@pytest.mark.parametrize(
    ("transport", "error", "status", "do"),
    [
        (Transport.NIXL_UCX, "", Status.OK, ""),
        (Transport.NIXL_UCX, "making agent: NIXL_ERR_BACKEND", Status.BROKEN, "ucx.transports"),
        (Transport.NIXL_LIBFABRIC, "libfabric.so.1: cannot open shared object file: none", Status.NONE, ""),
        (Transport.UCX, "no UCX was found", Status.NONE, ""),
    ],
)
def test_a_transport_is_a_fault_only_where_it_is_wanted(
    transport: Transport, error: str, status: Status, do: str
) -> None:
    """The reason is its own words in any case."""
    answer = Answer({"version": "1.5.1", "error": error, "ucx_library": "/x/libucp.so"}, "", "")
    finding = transports.judge(transports.read(transport, answer), Transport.NIXL_UCX)
    assert status == finding.status
    assert error in finding.found
    assert do in finding.do


def test_a_library_that_is_missing_is_named() -> None:
    """Where no UCX was loaded, the loader's words say what to install."""
    error = "backend=LIBFABRIC: libfabric.so.1: cannot open shared object file: No such file or directory"
    opened = transports.Opened(Transport.NIXL_LIBFABRIC, "", error, "")
    finding = transports.judge(opened, Transport.NIXL_LIBFABRIC)
    assert "install the library libfabric.so.1" in finding.do
    assert "--nixl-backend LIBFABRIC" in finding.costs


def test_a_child_that_died_is_a_transport_that_cannot_be_used() -> None:
    """How it ended is the reason."""
    opened = transports.read(Transport.UCX, Answer({}, "", "killed by SIGSEGV"))
    assert "killed by SIGSEGV" in transports.judge(opened, Transport.UCX).found
