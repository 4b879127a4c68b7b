"""``python -m racm3.cli``, as torchrun starts it."""

import sys

from racm3.cli import main

sys.exit(main())
