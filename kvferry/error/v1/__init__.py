"""Wire contract kvferry.error.v1: generated, see protos/kvferry/error/v1."""
