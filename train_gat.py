"""The same as `gat train`, as a file for launchers:

accelerate launch train_gat.py --config configs/quickstart.yaml seed=1
"""

import sys

from gat.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], prog="train_gat.py"))
