"""Wire contract kvferry.publication: generated, see protos/kvferry/publication."""
