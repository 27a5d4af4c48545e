"""What is said when no more publications can be live."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvferry.core.drain import RETRY_S_MAX, RETRY_S_MIN
from kvferry.core.errors import ResourceExhausted
from kvferry_control.metrics import ControlMetrics

if TYPE_CHECKING:
    from kvferry_control.publications.manager import Publication


def too_many_live(limit: int, publications: "Iterable[Publication]", metrics: ControlMetrics) -> ResourceExhausted:
    """The refusal of another one, which says when the next lease ends by itself; a release makes room before."""
    expiries = (one.expires_at for one in publications if not one.life.state.terminal)
    left = min(expiries, default=0.0) - time.monotonic()
    error = ResourceExhausted.of_bound(
        "limits.live_publications", limit, "so many are live", min(max(left, RETRY_S_MIN), RETRY_S_MAX)
    )
    metrics.count_refusal(error)
    return error
