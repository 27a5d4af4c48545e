"""Wire contract kvferry.layout.v1: generated, see protos/kvferry/layout/v1."""
