"""Wire contract kvferry.negotiation: generated, see protos/kvferry/negotiation."""
