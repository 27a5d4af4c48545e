"""Wire contract kvferry.publication.v1: generated, see protos/kvferry/publication/v1."""
