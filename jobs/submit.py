"""`synthgen run` with the arguments given, on the Ray cluster whose head this runs on: for `ray submit` and `ray job submit`."""

import os
import sys
from pathlib import Path

import synthgen
from synthgen.cli.main import main

os.chdir(
    Path(synthgen.__file__).parents[1]
)  # jobs/ and layouts/ are found there, wherever `ray submit` has put this file
sys.exit(main(["run", *sys.argv[1:], "--address", os.environ.get("RAY_ADDRESS", "auto")]))
