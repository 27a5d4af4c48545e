"""Wire contract kvferry.negotiation.v1: generated, see protos/kvferry/negotiation/v1."""
