"""`python -m seqmodels`: the command where it is not on the path."""

import sys

from seqmodels.cli import main

sys.exit(main())
