"""`python -m kzoo`."""

import sys

from kzoo.cli import main

sys.exit(main())
