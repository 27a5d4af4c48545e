"""Wire contract kvferry.worker: generated, see protos/kvferry/worker."""
