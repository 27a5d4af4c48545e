"""Wire contract kvferry.error: generated, see protos/kvferry/error."""
