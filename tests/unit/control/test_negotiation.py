"""What a source answers who asks it for a publication."""

from unittest.mock import Mock

import pytest

from kvferry.core.errors import NotReady
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry_control.config import LimitsSection
from kvferry_control.handles import make_handle
from kvferry_control.metrics import ControlMetrics
from kvferry_control.records import PROTOCOL_VERSION
from kvferry_control.services.negotiation import NegotiationService
from kvferry_control.worker import new_identity


def test_a_control_that_was_just_restarted_calls_no_handle_stale() -> None:
    """Before it has heard from its data planes which life it goes on with, it asks for patience."""
    worker = Mock(identity=new_identity())
    worker.name = "prefill-0"
    service = NegotiationService(worker, Mock(), [], ControlMetrics(), Mock(), LimitsSection())
    handle = make_handle("prefill-0", 2, "p", 16, worker.identity.handle_key)
    request = pb.NegotiateRequest(protocol_version=PROTOCOL_VERSION, transfer="t", handle=handle)
    with pytest.raises(NotReady, match="prefill-0"):
        service.negotiate(request, 1.0, pb.NegotiateResponse())
