"""What readings of limits, memory, namespaces and clocks mean."""

import resource
from pathlib import Path

import pytest

from kvferry.doctor import clock, limits, memory, namespaces
from kvferry.doctor.findings import Status

MIB = 1 << 20


@pytest.mark.parametrize(
    ("memlock_bytes", "has_ipc_lock", "has_rdma", "status"),
    [
        (64 << 10, False, True, Status.BROKEN),
        (64 << 10, True, True, Status.OK),
        (64 << 10, False, False, Status.NONE),
        (4 << 30, False, True, Status.SLOW),
        (resource.RLIM_INFINITY, False, True, Status.OK),
    ],
)
def test_memlock_matters_with_rdma_only(memlock_bytes: int, has_ipc_lock: bool, has_rdma: bool, status: Status) -> None:
    """A container's 64 KiB keep pools from RDMA devices; without such devices nothing locks memory."""
    finding = limits.judge(limits.Limits(memlock_bytes, has_ipc_lock, has_rdma, 65_536))[0]
    assert (limits.MEMLOCK, status) == (finding.check, finding.status)
    assert status.is_fault == ("memlock=-1" in finding.do)


def test_few_descriptors_are_a_fault() -> None:
    """Below the bound the finding names the limit."""
    few, many = (limits.judge(limits.Limits(-1, False, False, count))[1] for count in (256, 1024))
    assert (Status.BROKEN, Status.OK) == (few.status, many.status)
    assert "LimitNOFILE" in few.do


def test_capabilities_are_read_as_bits() -> None:
    """CAP_IPC_LOCK is bit 14 of CapEff; a text without that line has none."""
    assert 1 << 14 == limits.effective_capabilities("CapPrm:\tff\nCapEff:\t0000000000004000\n")
    assert 0 == limits.effective_capabilities("Name:\tx\n")


@pytest.mark.parametrize(
    ("shm", "status", "words"),
    [
        (memory.SharedFiles(64 * MIB, 63 * MIB), Status.OK, "--shm-size"),
        (memory.SharedFiles(64 * MIB, 2 * MIB), Status.SLOW, "2 of 64 MiB"),
        (memory.SharedFiles(0, 0, "/dev/shm: No such file or directory"), Status.SLOW, "No such file"),  # noqa: S108
        (memory.SharedFiles(8192 * MIB, 8000 * MIB), Status.OK, "8000 of 8192 MiB"),
    ],
)
def test_a_containers_shm_is_enough_until_it_is_full(shm: memory.SharedFiles, status: Status, words: str) -> None:
    """64 MiB do for data planes, whose pools lie elsewhere; without room UCX goes another way in silence."""
    finding = memory.judge_shm(shm)
    assert status == finding.status
    assert words in finding.found


def test_shm_that_is_not_there_is_read_as_such(tmp_path: Path) -> None:
    """The error names the path."""
    assert f"{tmp_path}/none: No such file" in memory.read_shm(tmp_path / "none").error


def test_pages_of_4_kib_are_slow() -> None:
    """Without huge pages the refusal is told; reserved and transparent ones are told apart."""
    refused = memory.judge_huge_pages(memory.HugePages(0, False, "set to 'never'"))
    assert (Status.SLOW, True) == (refused.status, "set to 'never'" in refused.found)
    assert "transparent" in memory.judge_huge_pages(memory.HugePages(4 * MIB, False, "")).found
    assert "reserved" in memory.judge_huge_pages(memory.HugePages(4 * MIB, True, "")).found


def test_namespaces_of_a_container_are_named() -> None:
    """That PID namespaces are not shared is no fault by itself; what it does to cma is said, with the flags."""
    own = namespaces.judge_namespaces(namespaces.Namespaces({"ipc": True, "pid": False}, 10_001))
    assert (Status.OK, "own", "host") == (own.status, own.values["pid"], own.values["ipc"])
    assert own.found.startswith("PID of a container")
    assert "--pid=container:NAME" in own.found
    assert "10001" in own.found
    shared = namespaces.judge_namespaces(namespaces.Namespaces({"ipc": True, "pid": True}, 0))
    assert "container" not in shared.found


@pytest.mark.parametrize(
    ("reads", "status", "do"),
    [
        (namespaces.ProcessReads(True, "", None), Status.OK, ""),
        (namespaces.ProcessReads(True, "", 1), Status.OK, ""),
        (namespaces.ProcessReads(True, "Operation not permitted", 2), Status.SLOW, "ptrace_scope"),
        (namespaces.ProcessReads(True, "Operation not permitted", None), Status.SLOW, "seccomp"),
        (namespaces.ProcessReads(False, "killed by SIGSYS", None), Status.BROKEN, "look at"),
    ],
)
def test_refused_reads_of_processes(reads: namespaces.ProcessReads, status: Status, do: str) -> None:
    """What cma needs is refused by Yama or by seccomp; a try that did not happen is no answer."""
    finding = namespaces.judge_reads(reads)
    assert status == finding.status
    assert do in finding.do


def test_a_kernel_without_identity_keeps_data_planes_apart(tmp_path: Path) -> None:
    """Without the boot id nothing is mapped."""
    (tmp_path / "boot_id").write_text("0c1d\n")
    assert Status.OK == namespaces.judge_host(tmp_path / "boot_id").status
    assert Status.SLOW == namespaces.judge_host(tmp_path / "none").status


@pytest.mark.parametrize(
    ("reading", "skew_s"),
    [
        (clock.Reading(100.4, 100, 100.5), 0.0),
        (clock.Reading(100.9, 99, 101.2), pytest.approx(0.9)),
        (clock.Reading(100.0, 160, 100.1), pytest.approx(-59.9)),
        (clock.Reading(160.0, 100, 160.1), pytest.approx(59.0)),
    ],
)
def test_skew_is_what_resolution_and_round_trip_do_not_explain(reading: clock.Reading, skew_s: float) -> None:
    """A Date has whole seconds, and the answer takes its time: only what lies beyond both is a difference."""
    assert skew_s == reading.skew_s


def test_a_wrong_clock_is_for_readers_of_logs() -> None:
    """It is a fault, and the finding says that nothing of kvferry depends on it."""
    fine, wrong = (clock.judge("e:2379", clock.Reading(now, 100, now)) for now in (101.5, 160))
    assert (Status.OK, Status.SLOW) == (fine.status, wrong.status)
    assert "59.0 s ahead of" in wrong.found
    assert all("decides nothing" in finding.found for finding in (fine, wrong))


def test_text_and_value_of_a_clock_have_the_same_seconds() -> None:
    """Also where a clock has lost the date, and the seconds have more digits than a short form of them has."""
    finding = clock.judge("e:2379", clock.Reading(100.25, 1_700_000_123, 100.25))
    assert -1_700_000_022.8 == finding.values["skew_s"]
    assert "this clock is 1700000022.8 s behind" in finding.found
