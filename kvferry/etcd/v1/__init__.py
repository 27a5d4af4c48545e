"""Wire contract kvferry.etcd.v1: generated, see protos/kvferry/etcd/v1."""
