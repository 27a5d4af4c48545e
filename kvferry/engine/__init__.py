"""Wire contract kvferry.engine: generated, see protos/kvferry/engine."""
