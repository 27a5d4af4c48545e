"""Wire contract kvferry.refengine: generated, see protos/kvferry/refengine."""
