"""Wire contract kvferry.transfer: generated, see protos/kvferry/transfer."""
