"""``python -m diagnose_mongo.cli`` is ``diagnose``."""

from __future__ import annotations

import sys

from diagnose_mongo.cli import main

sys.exit(main())
