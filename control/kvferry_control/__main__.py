"""``python -m kvferry_control``."""

import sys

from kvferry.blas import keep_blas_to_one_thread

keep_blas_to_one_thread()

from kvferry_control.main import main  # noqa: E402 - numpy is imported there

sys.exit(main())
