"""Finding workers through etcd: this worker's registration, and the view of all others."""
