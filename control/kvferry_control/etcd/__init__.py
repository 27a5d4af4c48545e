"""A client for etcd version 3: failover, leases, and watches that survive breaks."""
