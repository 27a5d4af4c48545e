"""Starts etcd, data planes, controls and engines as child processes on this machine, and ends them."""
