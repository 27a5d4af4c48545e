"""What probes of the paths between two workers mean. Pure."""

from collections.abc import Iterable, Iterator

from kvferry.doctor.ceilings import Ceilings
from kvferry.doctor.dataplanes import allows_more_than_sockets
from kvferry.doctor.findings import Finding, Value, broken, none, ok, slow
from kvferry.doctor.pair import Direction, ProbedPath
from kvferry.sdk.results import AttestedRoute, Pair, Path

CHECK = "peer"
SOCKETS = ("tcp", "sockcm")
SHARE_MIN = 0.1
"""A path with less of its ceiling is slow. Networks are slower than the loopback, and probes shorter than pulls."""


def judge_pairing(pair: Pair) -> Finding:
    """Whether the two are paired at all."""
    name = f"{CHECK}.pairing"
    who = f"{pair.source} to {pair.destination}"
    values: dict[str, Value] = {
        "source": pair.source,
        "destination": pair.destination,
        "warnings": list(pair.warnings),
    }
    if pair.compatible:
        return ok(name, "; ".join((f"{who}: can be paired", *pair.warnings)), **values)
    reasons = "; ".join(
        f"{found.reason} {found.field}: {found.source} and {found.destination}" for found in pair.mismatches
    )
    return broken(
        name,
        f"{who}: cannot be paired: {reasons}",
        costs="every pull is refused",
        do="change the first of these values on one side, and restart it",
        **values,
    )


def judge(found: Direction, ceilings: Ceilings) -> list[Finding]:
    """A finding for each path, or for each way in which it differs between ranks."""
    findings = [_judge_group(found, group, ceilings) for group in _groups(found.paths)]
    if found.unknown:
        findings.append(_unknown(found))
    if all(path.route is None for path in found.paths):
        findings.append(_no_path(found))
    return findings


def judge_ceilings(ceilings: Ceilings) -> list[Finding]:
    """What paths are compared with."""
    memory, sockets = _rate(ceilings.memory_gbytes_per_s), _rate(ceilings.socket_gbytes_per_s)
    return [
        ok("ceiling.memory", f"a plain copy by one thread here: {memory} GB/s", gbytes_per_s=memory),
        ok("ceiling.socket", f"a plain socket on the loopback here: {sockets} GB/s", gbytes_per_s=sockets),
    ]


def _groups(paths: Iterable[ProbedPath]) -> Iterator[list[ProbedPath]]:
    """Pairs of ranks between which a path is alike."""
    groups: dict[tuple[str, ...], list[ProbedPath]] = {}
    for path in paths:
        groups.setdefault(path.way, []).append(path)
    yield from groups.values()


def _judge_group(found: Direction, group: list[ProbedPath], ceilings: Ceilings) -> Finding:
    routes = [path.route for path in group if path.route is not None]
    if not routes:
        return _impossible(found, group)
    route = min(routes, key=lambda route: route.gbytes_per_s)
    over_sockets = any(name in SOCKETS for name in route.transport.split("+"))
    # Within a host the kernel could copy instead. What packs is a socket by design, and there only taken when forced.
    is_packed_within = found.same_host and route.path is Path.PACKED
    is_avoidable = over_sockets and found.same_host and not is_packed_within
    ceiling, of = (
        (ceilings.socket_gbytes_per_s, "a plain socket on the loopback here")
        if over_sockets and not is_avoidable
        else (ceilings.memory_gbytes_per_s, "a plain copy of memory here")
    )
    share, shown_share = route.gbytes_per_s / ceiling, round(route.gbytes_per_s / ceiling, 3)
    name = f"{CHECK}.path.{group[0].path}"
    text = f"{_who(found, group)}: {_figures(route)}, {shown_share:.1%} of {of}"
    values = _values(found, group) | _route_values(route)
    values |= {"ceiling_gbytes_per_s": _rate(ceiling), "share": shown_share}
    costs = (
        f"{_rate(route.gbytes_per_s)} GB/s where {of} gives {_rate(ceiling)}:"
        f" {_times(share)} times as long for each read"
    )
    if is_avoidable:
        return slow(name, text, costs=costs, do=_unblock(found), **values)
    piecewise = over_sockets and route.path is not Path.PACKED and not _packs(found)
    is_comparable = (over_sockets or found.same_host) and not is_packed_within
    if piecewise or (is_comparable and share < SHARE_MIN):
        return slow(name, text, costs=costs, do=_quicken(found, route), **values)
    return ok(name, text, **values)


def _packs(found: Direction) -> bool:
    """Whether what is read piece by piece could come packed as well."""
    return any(path.route is not None and path.route.path is Path.PACKED for path in found.paths)


def _rate(gbytes_per_s: float) -> float:
    """Rounded for values and text alike: text shows this number as it is, since rounding it again may differ."""
    return round(gbytes_per_s, 3)


def _latency_us(route: AttestedRoute) -> float:
    """Rounded for values and text alike."""
    return round(route.latency_s * 1e6, 1)


def _times(share: float) -> str:
    return f"{1 / share:.0f}" if share > 0 else "countless"


def _figures(route: AttestedRoute) -> str:
    over = f" over {route.transport}" if route.transport else f" over an unknown transport ({route.note})"
    device = f" ({route.device})" if route.device else ""
    return (
        f"{route.path}/{route.backend}{over if route.transport != route.backend else ''}{device},"
        f" {_rate(route.gbytes_per_s)} GB/s in pieces of 1 MiB, {_rate(route.small_gbytes_per_s)} in pieces of 4 KiB,"
        f" {_latency_us(route)} µs for 64 bytes"
    )


def _unblock(found: Direction) -> str:
    """Where sockets are used within a host: what keeps the kernel's copy from being taken."""
    for worker, ranks in found.settings.items():
        for rank, settings in enumerate(ranks):
            tls = settings.get("UCX_TLS")
            if tls is not None and not allows_more_than_sockets(tls):
                return f"unset UCX_TLS={tls} for the data plane of workers/{worker} rank {rank}"
    return "run both data planes with one user id, --ipc=container:NAME and --pid=container:NAME, as cma needs it"


def _quicken(found: Direction, route: AttestedRoute) -> str:
    if found.same_host:
        return "look at what else the machine does, and run the doctor again"
    if route.path is Path.PACKED:
        return "measure the network between the two with iperf3; if it gives more, report this with --json"
    return f"start the data planes of workers/{found.source} with --pack-listen, or give both machines RDMA"


def _impossible(found: Direction, group: list[ProbedPath]) -> Finding:
    path = group[0]
    text, values = f"{_who(found, group)}: impossible: {path.refusal}", _values(found, group)
    name = f"{CHECK}.path.{path.path}"
    if path.path == "local" and found.same_host:
        return slow(
            name,
            text,
            costs="reads within the host go over the backend, several times slower and piece by piece",
            do="remove what the reason names: both data planes see one folder of sockets and run as one user",
            **values,
        )
    return none(name, text, **values)


def _unknown(found: Direction) -> Finding:
    return broken(
        f"{CHECK}.unknown",
        f"{found.source} to {found.destination}: {'; '.join(dict.fromkeys(found.unknown))}",
        costs="nobody can tell how these ranks are reached",
        do="look at the health of the data planes that the messages name",
    )


def _no_path(found: Direction) -> Finding:
    return broken(
        f"{CHECK}.no_path",
        f"{found.source} to {found.destination}: no path is possible",
        costs="every pull fails",
        do="remove the first of the reasons above",
    )


def _who(found: Direction, group: list[ProbedPath]) -> str:
    ranks = "" if len(group) == 1 else f", slowest of {len(group)} pairs of ranks"
    return f"{found.source} to {found.destination}{ranks}"


def _values(found: Direction, group: list[ProbedPath]) -> dict[str, Value]:
    return {
        "source": found.source,
        "destination": found.destination,
        "same_host": found.same_host,
        "path": group[0].path,
        "rank_pairs": [[path.source_rank, path.destination_rank] for path in group],
        "refusal": group[0].refusal,
    }


def _route_values(route: AttestedRoute) -> dict[str, Value]:
    return {
        "backend": route.backend,
        "transport": route.transport,
        "device": route.device,
        "gbytes_per_s": _rate(route.gbytes_per_s),
        "small_gbytes_per_s": _rate(route.small_gbytes_per_s),
        "latency_us": _latency_us(route),
        "note": route.note,
    }
