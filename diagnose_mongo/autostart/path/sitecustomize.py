# Imported by the module `site` of each Python that starts under `diagnose run`. That may be any
# version, so this file keeps to what all of them understand.
import os
import sys

import _diagnose_first

_HERE = os.path.dirname(os.path.abspath(__file__))
if sys.version_info >= (3, 11):
    import _diagnose_autostart  # noqa: F401 - it starts a thread

# The program finds its path as it would be without us, and the sitecustomize that we hide runs.
# It may do likewise (ddtrace-run's does), and so import this file again: nothing happens then.
sys.path[:] = [entry for entry in sys.path if entry != _HERE]
_mine = sys.modules.pop("sitecustomize", None)
try:
    import sitecustomize  # noqa: F401 - another one
except ImportError as _error:
    if "sitecustomize" not in str(_error):
        raise
    sys.modules["sitecustomize"] = _mine
finally:
    # It may have put its own folder in front (again), for the programs that this one starts.
    _diagnose_first.come_first()
