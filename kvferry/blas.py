"""numpy's linear algebra, which nothing in kvferry's processes uses."""

import os


def keep_blas_to_one_thread() -> None:
    """Have OpenBLAS start no thread for every core, unless the user has said otherwise. Before numpy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
