"""`python -m tinyft`: the same as the command `tinyft`.

Next: tinyft/cli/main.py
"""

import sys

from tinyft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
