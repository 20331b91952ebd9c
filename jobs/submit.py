"""Run `synthgen run` with the given arguments on the Ray cluster of this machine.

The script runs on the head of the cluster, for `ray submit` and `ray job submit`.
"""

import os
import sys
from pathlib import Path

import synthgen
from synthgen.cli.main import main

# The folder of jobs/ and layouts/, because `ray submit` may copy this file elsewhere.
os.chdir(Path(synthgen.__file__).parents[1])
sys.exit(main(["run", *sys.argv[1:], "--address", os.environ.get("RAY_ADDRESS", "auto")]))
