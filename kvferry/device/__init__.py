"""Memory that a data plane owns and others map: shared host memory and CUDA allocations."""
