"""What a data plane says of itself: to control, and by way of it to peers."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.negotiation.v1.negotiation_pb2 import RankAccess
from kvferry_dataplane.attestation.pattern import PROBE_BYTES
from kvferry_dataplane.leases import WORD_BYTES
from kvferry_dataplane.paths import PathPolicy
from kvferry_dataplane.pool import Pool
from kvferry_dataplane.serving import ServingThread
from kvferry_dataplane.transports.memory import Region
from kvferry_dataplane.transports.transport import TransportLibrary


def describe(
    pool: Pool, boot_id: bytes, serving: ServingThread, table: Region, library: TransportLibrary, policy: PathPolicy
) -> pb.DescribeResponse:
    """What does not change while the process lives; sockets and the packed path are added by who opens them."""
    description = pb.DescribeResponse(
        access=_access_of(pool, boot_id, serving, table),
        huge_page_bytes=pool.huge_page_bytes,
        version=_version(),
        transport_version=library.version,
        maps_same_host=policy.maps_same_host,
    )
    description.access.backend = library.transport.value
    for setting in library.settings:
        description.transport_settings.add(name=setting.name, value=setting.value, from_environment=setting.from_user)
    return description


def let_probe(access: RankAccess, slot: int, word: int) -> None:
    """Let peers read what is behind the pool, under a lease word that holds for as long as the process lives."""
    access.probe_bytes = PROBE_BYTES
    access.probe_slot = slot
    access.probe_word = word


def let_pack(access: RankAccess, endpoint: str, slots: Sequence[Region]) -> None:
    """Say where pieces are packed, if they are, and where chunks are held."""
    access.pack_endpoint = endpoint
    for region in slots:
        access.pack_slots_address = region.address
        access.pack_slots_bytes = region.size_bytes


def _access_of(pool: Pool, boot_id: bytes, serving: ServingThread, table: Region) -> RankAccess:
    return RankAccess(
        device=pool.device,
        boot_id=boot_id,
        agent_name=serving.agent_name,
        agent_metadata=serving.metadata,
        pool_address=pool.region.address,
        pool_bytes=pool.region.size_bytes,
        device_index=pool.region.device_index,
        lease_table_address=table.address,
        lease_slot_count=table.size_bytes // WORD_BYTES,
    )


def _version() -> str:
    try:
        return version("kvferry")
    except PackageNotFoundError:
        return "not installed"
