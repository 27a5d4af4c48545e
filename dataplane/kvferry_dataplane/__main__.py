"""Lets `python -m kvferry_dataplane` start a data plane."""

import sys

from kvferry_dataplane.main import main

sys.exit(main())
