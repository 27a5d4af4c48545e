"""Wire contract kvferry.worker.v1: generated, see protos/kvferry/worker/v1."""
