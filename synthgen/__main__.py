"""The entry point of `python -m synthgen`."""

import sys

from synthgen.cli.main import main

sys.exit(main())
