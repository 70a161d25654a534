"""`python -m mlflow_scalpel.cli`."""

import sys

from mlflow_scalpel.cli import main

sys.exit(main())
