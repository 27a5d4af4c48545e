"""Wire contract kvferry.engine.v1: generated, see protos/kvferry/engine/v1."""
