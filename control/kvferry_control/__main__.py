"""``python -m kvferry_control``."""

import sys

from kvferry_control.main import main

sys.exit(main())
