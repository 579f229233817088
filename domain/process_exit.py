"""The end of a process that has used the Temporal SDK."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import NoReturn


def exit_now(code: int) -> NoReturn:
    """End the process with this exit code after flushing stdout and stderr.

    The interpreter's own exit destroys its thread states while threads of the SDK may still use one, and aborts then
    (``PyGILState_Release``, exit code -6; temporalio/sdk-python issue 300). Collecting the client first makes that rare
    but does not prevent it: the SDK's threads end in their own time. Call it last, when everything else is closed.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader has ended, or it was closed
            stream.flush()
    os._exit(code)
