"""How far this machine's clock is from etcd's. For people who read logs: kvferry decides nothing by the time of day."""

import asyncio
import email.utils
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import urlopen

from kvferry.doctor.findings import Finding, Value, ok, skipped, slow
from kvferry_control.etcd.config import EtcdOptions

CHECK = "clock.skew"
SKEW_S_MAX = 2.0
_TIMEOUT_S = 2.0
_RESOLUTION_S = 1.0
_DECIDES_NOTHING = "kvferry itself decides nothing by the time of day"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a server's clock said between two looks at one's own, in seconds since the epoch."""

    before_s: float
    server_s: float
    """Whole seconds, rounded down."""
    after_s: float

    @property
    def skew_s(self) -> float:
        """How far this clock is ahead at least; negative: behind; 0 where the two may agree."""
        ahead = self.before_s - (self.server_s + _RESOLUTION_S)
        behind = self.server_s - self.after_s
        return ahead if ahead > 0 else -behind if behind > 0 else 0.0


async def look(options: EtcdOptions | None) -> Sequence[Finding]:
    """Ask the first member that answers for its time."""
    if options is None:
        return [skipped(CHECK, "etcd is not known, so there is no clock to compare with")]
    failures = []
    for address in options.addresses:
        try:
            return [judge(address, await asyncio.to_thread(read_clock, address, options))]
        except (OSError, ValueError) as error:
            failures.append(f"{address}: {error}")
    return [skipped(CHECK, f"no member gives the time ({'; '.join(failures)}); {_DECIDES_NOTHING}")]


def read_clock(address: str, options: EtcdOptions) -> Reading:
    """The Date of an answer of etcd's HTTP interface.

    Raises:
        OSError: no answer.
        ValueError: an answer without a time.
    """
    context = None
    if options.tls:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.cert_file is not None and options.key_file is not None:
            context.load_cert_chain(options.cert_file, options.key_file)
    url = urlsplit(f"{'https' if options.tls else 'http'}://{address}/version").geturl()
    before_s = time.time()
    with urlopen(url, timeout=_TIMEOUT_S, context=context) as answer:  # noqa: S310 - http or https, see above
        date = answer.headers["Date"]
    after_s = time.time()
    if not date:
        raise ValueError("its answer has no Date")
    return Reading(before_s, email.utils.parsedate_to_datetime(date).timestamp(), after_s)


def judge(address: str, reading: Reading) -> Finding:
    """What a difference of clocks means."""
    skew_s = round(reading.skew_s, 1)
    values: dict[str, Value] = {"endpoint": address, "skew_s": skew_s, "resolution_s": _RESOLUTION_S}
    if abs(skew_s) <= SKEW_S_MAX:
        return ok(CHECK, f"within {SKEW_S_MAX:g} s of etcd's at {address}; {_DECIDES_NOTHING}", **values)
    direction = "ahead of" if skew_s > 0 else "behind"
    return slow(
        CHECK,
        f"this clock is {abs(skew_s)} s {direction} that of etcd at {address}; {_DECIDES_NOTHING}",
        costs="times in logs of different machines do not line up, and certificates may seem expired",
        do="keep both machines' clocks by NTP",
        **values,
    )
