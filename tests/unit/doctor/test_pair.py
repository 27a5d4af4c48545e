"""What probes between two workers mean."""

import dataclasses
import re

import pytest

from kvferry.core.errors import InvalidArgument
from kvferry.core.reasons import Reason
from kvferry.doctor import pair_verdicts
from kvferry.doctor.ceilings import Ceilings, measure
from kvferry.doctor.findings import Finding, Status
from kvferry.doctor.pair import Direction, ProbedPath, directions
from kvferry.sdk.results import AttestedRoute, Mismatch, Pair, Path, Role, Worker, WorkerState

CEILINGS = Ceilings(memory_gbytes_per_s=10.0, socket_gbytes_per_s=2.0)


def probed(
    path: str, transport: str, rate: float, *, backend: str = "UCX", ranks: tuple[int, int] = (0, 0)
) -> ProbedPath:
    """A path that is possible."""
    route = AttestedRoute(
        path=Path(path),
        backend=backend,
        transport=transport,
        device="eth0" if transport == "tcp" else "memory",
        gbytes_per_s=rate,
        small_gbytes_per_s=rate / 4,
        latency_s=20e-6,
        degraded=False,
        best_gbytes_per_s=rate,
        rank_pair_count=1,
        note="zero-copy",
    )
    return ProbedPath(path, *ranks, route=route)


def refused(path: str, why: str) -> ProbedPath:
    """A path that is not."""
    return ProbedPath(path, 0, 0, refusal=why)


def judged(*paths: ProbedPath, same_host: bool = True, settings: dict[str, str] | None = None) -> list[Finding]:
    """The findings of one direction; ``settings`` are those of the source's rank."""
    own: dict[str, list[dict[str, str]]] = {"prefill-0": [settings or {}], "decode-0": [{}]}
    return pair_verdicts.judge(Direction("prefill-0", "decode-0", same_host, paths, settings=own), CEILINGS)


@pytest.mark.parametrize(
    ("path", "same_host", "status"),
    [
        (probed("local", "memory", 9.0, backend="memory"), True, Status.OK),
        (probed("local", "memory", 0.5, backend="memory"), True, Status.SLOW),
        (probed("nixl", "cma", 4.0), True, Status.OK),
        (probed("nixl", "tcp", 0.4), True, Status.SLOW),
        (probed("nixl", "tcp", 9.0), True, Status.SLOW),
        (probed("nixl", "cma+tcp", 4.0), True, Status.SLOW),
        (probed("nixl", "tcp", 0.4), False, Status.SLOW),
        (probed("nixl", "tcp", 1.5), False, Status.SLOW),
        (probed("nixl", "rc_mlx5", 0.9), False, Status.OK),
        (probed("packed", "tcp", 1.5, backend="stream"), True, Status.OK),
        (probed("packed", "tcp", 0.1, backend="stream"), True, Status.OK),
        (probed("packed", "tcp", 1.5, backend="stream"), False, Status.OK),
        (probed("packed", "tcp", 0.1, backend="stream"), False, Status.SLOW),
        (refused("local", "the source is on another host"), False, Status.NONE),
        (refused("local", "its share socket cannot be reached"), True, Status.SLOW),
        (refused("packed", "the source does not pack"), True, Status.NONE),
    ],
)
def test_a_path_is_judged_by_transport_place_and_rate(path: ProbedPath, same_host: bool, status: Status) -> None:
    """Sockets within a host are slow whatever their rate; what is impossible is a fault only where it should not be."""
    assert status == judged(path, probed("nixl", "rc_mlx5", 9.0), same_host=same_host)[0].status


def test_sockets_between_hosts_are_slow_where_nothing_packs() -> None:
    """Packing is for what goes over sockets piece by piece; where the source packs, nothing is wrong: pulls choose."""
    alone, *_ = judged(probed("nixl", "tcp", 1.5), same_host=False)
    assert (Status.SLOW, True) == (alone.status, "--pack-listen" in alone.do)
    packed = probed("packed", "tcp", 1.5, backend="stream")
    assert [Status.OK] * 2 == [f.status for f in judged(probed("nixl", "tcp", 1.5), packed, same_host=False)]


def test_the_finding_has_rate_and_ceiling_and_names_the_setting() -> None:
    """What costs is in GB/s against the local ceiling, and the one thing to do is the variable that is set."""
    (finding,) = judged(probed("nixl", "tcp", 0.4), settings={"UCX_TLS": "tcp"})
    assert "0.4 GB/s where a plain copy of memory here gives 10.0" in finding.costs
    assert "unset UCX_TLS=tcp for the data plane of workers/prefill-0 rank 0" == finding.do
    assert (0.04, 10.0) == (finding.values["share"], finding.values["ceiling_gbytes_per_s"])
    (unset,) = judged(probed("nixl", "tcp", 0.4))
    assert "--pid=container:NAME" in unset.do


@pytest.mark.parametrize("rate", [0.8749, 0.8751, 0.00149, 1.23456])
def test_text_and_values_have_the_same_figures(rate: float) -> None:
    """Whoever reads the text and whoever reads the JSON sees one number, also where rounding twice gives another."""
    ceilings = Ceilings(memory_gbytes_per_s=7.12496, socket_gbytes_per_s=2.00496)
    path = probed("nixl", "tcp", rate)
    assert path.route is not None
    path = dataclasses.replace(path, route=dataclasses.replace(path.route, latency_s=20.46e-6))
    (finding,) = pair_verdicts.judge(Direction("a", "b", True, (path,), settings={}), ceilings)
    read = re.search(r"([0-9.]+) GB/s in .*, ([0-9.]+) in .*, ([0-9.]+) µs for .*, ([0-9.]+)% of ", finding.found)
    assert read is not None
    *figures, percent = (float(figure) for figure in read.groups())
    assert [finding.values[name] for name in ("gbytes_per_s", "small_gbytes_per_s", "latency_us")] == figures
    assert finding.values["share"] == pytest.approx(percent / 100, abs=1e-9)
    costs = re.match(r"([0-9.]+) GB/s where .* gives ([0-9.]+): ", finding.costs)
    assert costs is not None
    of_costs = [float(figure) for figure in costs.groups()]
    assert [finding.values["gbytes_per_s"], finding.values["ceiling_gbytes_per_s"]] == of_costs
    of_memory, of_socket = pair_verdicts.judge_ceilings(ceilings)
    assert finding.values["ceiling_gbytes_per_s"] == of_memory.values["gbytes_per_s"]
    assert f": {of_memory.values['gbytes_per_s']} GB/s" in of_memory.found
    assert f": {of_socket.values['gbytes_per_s']} GB/s" in of_socket.found


def test_pairs_of_ranks_that_are_alike_are_one_finding() -> None:
    """With the slowest figures; those that differ have findings of their own."""
    first, second = judged(
        probed("nixl", "cma", 5.0),
        probed("nixl", "cma", 4.0, ranks=(0, 1)),
        probed("nixl", "tcp", 0.3, ranks=(1, 1)),
    )
    assert ([[0, 0], [0, 1]], 4.0) == (first.values["rank_pairs"], first.values["gbytes_per_s"])
    assert (Status.SLOW, [[1, 1]]) == (second.status, second.values["rank_pairs"])


def test_no_path_and_ranks_that_do_not_answer_are_broken() -> None:
    """Reasons alone are no way."""
    findings = judged(refused("local", "the source is on another host"), refused("nixl", "no answer"), same_host=False)
    assert ["peer.no_path", Status.BROKEN] == [findings[-1].check, findings[-1].status]
    silent = Direction("a", "b", False, (probed("nixl", "rc_mlx5", 9.0),), unknown=("rank 1: no session",) * 2)
    (unknown,) = [f for f in pair_verdicts.judge(silent, CEILINGS) if f.check == "peer.unknown"]
    assert (Status.BROKEN, 1) == (unknown.status, unknown.found.count("no session"))


def test_a_pair_that_is_refused_has_every_reason() -> None:
    """With both sides' values."""
    mismatch = Mismatch(Reason.TRANSPORT_MISMATCH, "transport", "nixl/UCX", "ucx")
    pair = Pair("workers/a", 1, "workers/b", 1, False, (mismatch,))
    finding = pair_verdicts.judge_pairing(pair)
    assert (Status.BROKEN, True) == (finding.status, "nixl/UCX and ucx" in finding.found)
    paired = dataclasses.replace(pair, compatible=True, mismatches=(), warnings=("versions differ",))
    finding = pair_verdicts.judge_pairing(paired)
    assert (Status.OK, True) == (finding.status, "versions differ" in finding.found)


def worker(name: str, role: Role) -> Worker:
    """One of a role."""
    return Worker(f"workers/{name}", 1, role, WorkerState.READY, "h:1", None, ())


def test_kv_moves_from_prefill_to_decode() -> None:
    """Workers for both are probed in both directions; two of one kind are refused."""
    prefill, decode = worker("p", Role.PREFILL), worker("d", Role.DECODE)
    assert [(prefill, decode)] == directions(decode, prefill) == directions(prefill, decode)
    one, other = worker("x", Role.BOTH), worker("y", Role.BOTH)
    assert [(one, other), (other, one)] == directions(one, other)
    with pytest.raises(InvalidArgument, match="--peer=workers/q: "):
        directions(prefill, worker("q", Role.PREFILL))


def test_ceilings_are_real_rates() -> None:
    """Both are measured on this machine."""
    found = measure()
    assert 0.01 < found.socket_gbytes_per_s < 1000
    assert 0.01 < found.memory_gbytes_per_s < 1000
