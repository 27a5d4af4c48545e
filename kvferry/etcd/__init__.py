"""Wire contract kvferry.etcd: generated, see protos/kvferry/etcd."""
