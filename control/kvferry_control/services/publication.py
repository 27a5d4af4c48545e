"""PublicationService: this worker's publications, for operators and routers."""

from grpc import aio

from kvferry.publication.v1 import publication_pb2 as pb
from kvferry.publication.v1.publication_pb2_grpc import PublicationServiceServicer
from kvferry.rpc.errors import unary_method
from kvferry_control.publications.manager import Publications
from kvferry_control.requests import id_of, page


class PublicationService(PublicationServiceServicer):
    """Shows publications; their handles stay with the engine that made them."""

    def __init__(self, publications: Publications) -> None:
        self._publications = publications

    @unary_method
    async def ListPublications(
        self,
        request: pb.ListPublicationsRequest,
        context: aio.ServicerContext[pb.ListPublicationsRequest, pb.ListPublicationsResponse],
    ) -> pb.ListPublicationsResponse:
        listed = self._publications.newest_first()
        chosen, token = page(listed, request.page_size, request.page_token, lambda publication: publication.id)
        return pb.ListPublicationsResponse(publications=[p.to_wire() for p in chosen], next_page_token=token)

    @unary_method
    async def GetPublication(
        self,
        request: pb.GetPublicationRequest,
        context: aio.ServicerContext[pb.GetPublicationRequest, pb.GetPublicationResponse],
    ) -> pb.GetPublicationResponse:
        publication = self._publications.get(id_of("publications", request.name))
        return pb.GetPublicationResponse(publication=publication.to_wire())
