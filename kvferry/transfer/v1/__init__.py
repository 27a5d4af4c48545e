"""Wire contract kvferry.transfer.v1: generated, see protos/kvferry/transfer/v1."""
