"""Pictures that ship with the package (dog cut-outs, grounds) and the scripts that made them."""

from pathlib import Path

ASSETS = Path(__file__).parent
