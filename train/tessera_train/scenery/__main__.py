"""`python -m tessera_train.scenery`."""

import sys

from .dataset import main

if __name__ == "__main__":
    sys.exit(main())
