"""Images that ship with the package (cut-outs and backgrounds), and the scripts that made them."""

from pathlib import Path

ASSETS = Path(__file__).parent
