"""etcd: whether each member answers, how quickly, in which version, and what its clock says."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvferry.core.errors import ConfigInvalid
from kvferry.doctor.findings import Finding, Value, broken, ok, skipped, slow
from kvferry_control.config import EtcdSection
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.config import EtcdOptions
from kvferry_control.etcd.errors import EtcdAuthFailed, EtcdConfigError, EtcdError, EtcdTlsFailed

CHECK = "etcd"
ROUNDS = 9
LATENCY_S_MAX = 0.05
"""A read that takes longer makes registration and the view of the cluster slow; an attempt has one second."""
_MEMBER_S_MAX = 2.0
_CORRUPTING = ("3.5.0", "3.5.1", "3.5.2")
_LOOPBACK = ("127.", "localhost:", "[::1]:")


@dataclass(frozen=True, slots=True)
class Member:
    """What one member answered."""

    endpoint: str
    version: str
    leader_id: int
    alarms: tuple[str, ...]
    latency_s: float
    """Median of reads that a quorum confirmed."""


def options_of(section: EtcdSection) -> EtcdOptions:
    """The client's options for what a control's configuration says.

    Raises:
        ConfigInvalid: a value is wrong, or the password's file cannot be read.
    """
    try:
        password = None if section.password_file is None else section.password_file.read_text().strip()
    except OSError as error:
        raise ConfigInvalid.of_field("etcd.password_file", str(section.password_file), str(error)) from error
    try:
        return EtcdOptions(
            endpoints=section.endpoints,
            prefix=section.prefix,
            ca_file=section.ca_file,
            cert_file=section.cert_file,
            key_file=section.key_file,
            user=section.user,
            password=password,
            lease_ttl_s=section.lease_ttl_s,
        )
    except EtcdConfigError as error:
        raise ConfigInvalid.of_field(f"etcd.{error.field}", error.value, error.detail) from error


async def look(options: EtcdOptions | None, endpoint: str) -> Sequence[Finding]:
    """Ask the member at ``endpoint``, one of those in ``options``."""
    if options is None:
        return [skipped(CHECK, "no endpoint is known: give --etcd HOST:PORT, or --config with a control's file")]
    try:
        return judge(await measure(options, endpoint))
    except EtcdError as error:
        return [unreachable(endpoint, error)]


async def measure(options: EtcdOptions, endpoint: str) -> Member:
    """Ask one member for its state, and time reads of a key under the prefix that nobody writes.

    Raises:
        EtcdError: it does not answer, or refuses.
    """
    alone = replace(options, endpoints=(endpoint,), operation_timeout_s=_MEMBER_S_MAX)
    async with EtcdClient(alone) as client:
        status = await client.status()
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            await client.get(f"{options.prefix}/doctor")
            times.append(time.perf_counter() - started)
    return Member(endpoint, status.version, status.leader_id, status.alarms, statistics.median(times))


def judge(member: Member) -> list[Finding]:
    """What a member's answer means."""
    return [_state(member), _version(member), _latency(member)]


def _state(member: Member) -> Finding:
    name, at = f"{CHECK}.reachable", f"etcd at {member.endpoint}"
    if member.alarms:
        return broken(
            name,
            f"{at} answers, with alarms: {', '.join(member.alarms)}",
            costs="it refuses writes: no worker can register, and those that lose their lease are gone for others",
            do="free its space: compact, defragment, then `etcdctl alarm disarm`",
            endpoint=member.endpoint,
            alarms=list(member.alarms),
        )
    if not member.leader_id:
        return broken(
            name,
            f"{at} answers and knows no leader",
            costs="no worker can register or be found through it",
            do="bring back a majority of etcd's members",
            endpoint=member.endpoint,
        )
    return ok(name, f"{at} answers and has a leader", endpoint=member.endpoint)


def _version(member: Member) -> Finding:
    name, text = f"{CHECK}.version", f"etcd {member.version} at {member.endpoint}"
    values: dict[str, Value] = {"endpoint": member.endpoint, "version": member.version}
    if member.version not in _CORRUPTING:
        return ok(name, text, **values)
    if member.endpoint.startswith(_LOOPBACK):
        return ok(name, f"{text}: for development only, it can lose writes when it crashes", **values)
    return broken(
        name,
        text,
        costs="this release can lose writes when it crashes: members then show different workers for good",
        do="update etcd to 3.5.3 or later",
        **values,
    )


def _latency(member: Member) -> Finding:
    name, milliseconds = f"{CHECK}.latency", round(member.latency_s * 1e3, 2)
    text = f"a confirmed read from {member.endpoint} takes {milliseconds:g} ms (median of {ROUNDS})"
    values: dict[str, Value] = {"endpoint": member.endpoint, "latency_ms": milliseconds}
    if member.latency_s <= LATENCY_S_MAX:
        return ok(name, text, **values)
    return slow(
        name,
        text,
        costs="workers are found and missed later, from 1 s on attempts fail; pulls between known workers lose nothing",
        do="give etcd a faster disk and a nearer place, or name a nearer member first",
        **values,
    )


def unreachable(endpoint: str, error: EtcdError) -> Finding:
    """What an error of the client means."""
    if isinstance(error, EtcdTlsFailed):
        do = "check ca_file, cert_file and key_file, and that etcd serves TLS there"
    elif isinstance(error, EtcdAuthFailed):
        do = "correct user and password_file, and grant the user read and write on the prefix"
    else:
        do = f"start etcd at {endpoint}, or correct the endpoint; nothing of kvferry needs a restart"
    return broken(
        f"{CHECK}.reachable",
        str(error),
        costs="no worker can register or be found through it; pulls between workers that know each other go on",
        do=do,
        endpoint=endpoint,
    )
