"""Lets `python -m kvferry_dataplane` start a data plane."""

import sys

from kvferry.blas import keep_blas_to_one_thread

keep_blas_to_one_thread()

from kvferry_dataplane.main import main  # noqa: E402 - numpy is imported there

sys.exit(main())
