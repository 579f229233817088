"""The Nexus service ``chatjobs``, for workflows that run jobs of another namespace (docs/nexus.md).

It needs nexusrpc, which Temporal's SDK brings; nothing else of this package imports it.
"""

from __future__ import annotations

from typing import Any, Final

import nexusrpc

SERVICE: Final = "chatjobs"
"""The name of the service."""
ENDPOINT: Final = "chatjobs"
"""The usual name of the Nexus endpoint."""


@nexusrpc.service(name=SERVICE)
class NexusJobs:
    """Jobs, for ``workflow.create_nexus_client(service=NexusJobs, endpoint=ENDPOINT)``."""

    complete: nexusrpc.Operation[dict[str, Any], dict[str, Any]]
    """Run a job. The input is a body as ``POST /api/jobs`` takes it, the result a job object (ChatResult) as JSON, so
    that a caller needs no data converter of its own and is not bothered by the fields of later versions."""
