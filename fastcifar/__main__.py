"""`python -m fastcifar`, which is `fastcifar`."""

import sys

from fastcifar.cli import main

sys.exit(main())
