"""Reads figures from a process's Prometheus endpoint."""

import asyncio
import http.client

from prometheus_client.parser import text_string_to_metric_families

from kvferry.core.errors import NotReady

TIMEOUT_S = 2.0


async def read_metric(address: str, name: str, **labels: str) -> float:
    """The sum over all samples of ``name`` that carry these labels; 0 if there are none.

    Raises:
        NotReady: nobody answers at ``address`` (host:port).
    """
    text = await asyncio.to_thread(_fetch, address)
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def _fetch(address: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(f"metrics at {address}: {error}", metadata={"endpoint": address}) from error
    finally:
        connection.close()
