"""Wire contract kvferry.dataplane.v1: generated, see protos/kvferry/dataplane/v1."""
