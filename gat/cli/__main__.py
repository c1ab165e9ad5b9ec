"""`python -m gat.cli` is `gat`, also where scripts are not on the path."""

import sys

from gat.cli import main

sys.exit(main())
