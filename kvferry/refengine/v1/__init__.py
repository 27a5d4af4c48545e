"""Wire contract kvferry.refengine.v1: generated, see protos/kvferry/refengine/v1."""
