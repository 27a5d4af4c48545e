"""What UCX prints of its choices, as it was recorded from the UCX 1.23 of NIXL 1.5.1, is understood."""

import pytest

from kvferry_dataplane.transports.transport import TransportUse
from kvferry_dataplane.transports.ucx_report import NAME_CHARS_MAX, read_uses

CMA = """\
[1795977857.411045] [vm:10523:0]      ucp_worker.c:1997 UCX  INFO    read0 intra-node cfg#1 rma_am(tcp/lo)  ka(tcp/lo)
[1795977857.412691] [vm:10523:0]   +--------+-------------+-----------------------------------+
[1795977857.412691] [vm:10523:0]   | read0 intra-node cfg#1                                   |
[1795977857.412691] [vm:10523:0]   | remote memory write by ucp_put* from host memory to host |
[1795977857.412691] [vm:10523:0]   +--------+-------------+-----------------------------------+
[1795977857.412691] [vm:10523:0]   | Range  | Description |              Config               |
[1795977857.412691] [vm:10523:0]   +--------+-------------+-----------------------------------+
[1795977857.412691] [vm:10523:0]   | 0..inf | zero-copy   | cma/memory                        |
[1795977857.412691] [vm:10523:0]   +--------+-------------+-----------------------------------+
[1795977857.453049] [vm:10523:0]   +--------+-------------+-------------------------------------------+
[1795977857.453049] [vm:10523:0]   | read0 intra-node cfg#1                                           |
[1795977857.453049] [vm:10523:0]   | remote memory read by ucp_get*(multi) into host memory from host |
[1795977857.453049] [vm:10523:0]   +--------+-------------+-------------------------------------------+
[1795977857.453049] [vm:10523:0]   | Range  | Description |                  Config                   |
[1795977857.453049] [vm:10523:0]   +--------+-------------+-------------------------------------------+
[1795977857.453049] [vm:10523:0]   | 0..inf | zero-copy   | cma/memory                                |
[1795977857.453049] [vm:10523:0]   +--------+-------------+-------------------------------------------+
"""
TCP = """\
[1795980116.436691] [vm:13130:0]   | read1 intra-node cfg#1                                                 |
[1795980116.436691] [vm:13130:0]   | active message by ucp_am_send* with reply flag(multi) from host memory |
[1795980116.436691] [vm:13130:0]   +----------+--------------------+----------------------------------------+
[1795980116.436691] [vm:13130:0]   |  Range   |    Description     |                 Config                 |
[1795980116.436691] [vm:13130:0]   +----------+--------------------+----------------------------------------+
[1795980116.436691] [vm:13130:0]   |   0..626 | short              | tcp/lo                                 |
[1795980116.436691] [vm:13130:0]   | 627..inf | multi-frag copy-in | tcp/lo                                 |
[1795980116.436691] [vm:13130:0]   +----------+--------------------+----------------------------------------+
[1795980116.465215] [vm:13130:0]   +--------+--------------------+------------------------------------+
[1795980116.465215] [vm:13130:0]   | read1 intra-node cfg#1                                           |
[1795980116.465215] [vm:13130:0]   | remote memory read by ucp_get*(multi) into host memory from host |
[1795980116.465215] [vm:13130:0]   +--------+--------------------+------------------------------------+
[1795980116.465215] [vm:13130:0]   | Range  |    Description     |               Config               |
[1795980116.465215] [vm:13130:0]   +--------+--------------------+------------------------------------+
[1795980116.465215] [vm:13130:0]   | 0..inf | software emulation | tcp/lo                             |
[1795980116.465215] [vm:13130:0]   +--------+--------------------+------------------------------------+
"""


def test_each_worker_has_its_own_choice() -> None:
    """Of what two workers have printed, one's reads are told; its writes and messages are others."""
    assert TransportUse("cma", "memory", "zero-copy") == read_uses(CMA + TCP).get("read0")
    assert TransportUse("tcp", "lo", "software emulation") == read_uses(CMA + TCP).get("read1")


def test_what_was_not_printed_is_not_known() -> None:
    """A worker that has printed nothing, or nothing of reads, is not guessed."""
    assert read_uses(CMA).get("read") is None
    assert read_uses(CMA).get("read1") is None
    assert {} == read_uses("\n".join(CMA.splitlines()[:9]))
    assert read_uses("").get("read0") is None


def test_a_name_is_cut_as_ucx_cuts_it() -> None:
    """A worker's name of more than 31 characters is found by its first 31."""
    name = "probe-0123456789-0123456789-0123456789"
    assert TransportUse("cma", "memory", "zero-copy") == read_uses(CMA.replace("read0", name[:31])).get(
        name[:NAME_CHARS_MAX]
    )


# Rows as UCX words shares of several devices, seen here with `52% on tcp/lo and 48% on tcp/eth0`.
@pytest.mark.parametrize(
    ("config", "transport", "device"),
    [
        ("52% on tcp/lo and 48% on tcp/eth0", "tcp", "lo+eth0"),
        ("50% on rc_mlx5/mlx5_0:1/path0 and 50% on rc_mlx5/mlx5_1:1/path0", "rc_mlx5", "mlx5_0:1+mlx5_1:1"),
        ("rc_mlx5/mlx5_0:1 and tcp/eth0", "rc_mlx5+tcp", "mlx5_0:1+eth0"),
        ("cuda_ipc/cuda", "cuda_ipc", "cuda"),
    ],
)
def test_several_devices_are_all_named(config: str, transport: str, device: str) -> None:
    """Transports and devices are named once each, in the order in which UCX names them."""
    report = CMA.replace("cma/memory                                |", f"{config} |")
    assert TransportUse(transport, device, "zero-copy") == read_uses(report).get("read0")


def test_small_reads_do_not_count() -> None:
    """Where reads of different sizes take different transports, the one of large reads is told."""
    row = "| 0..inf | zero-copy   | cma/memory                                |"
    report = CMA.replace(row, f"| 0..64 | short | posix/memory |\n{row.replace('0..inf', '65..inf')}")
    assert TransportUse("cma", "memory", "zero-copy") == read_uses(report).get("read0")


def test_what_is_printed_beside_the_tables_changes_nothing() -> None:
    """Lines of other threads end the table that they fall into; the next one is read."""
    lines = CMA.splitlines()
    cut = "\n".join([*lines[:15], "[1.0] [vm:1:0]  tcp_ep.c:1  UCX  INFO  connected", *lines[15:]])
    assert {} == read_uses(cut)
    assert ["read0"] == list(read_uses(f"{cut}\n{CMA}"))
