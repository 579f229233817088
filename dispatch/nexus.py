"""The Nexus service ``chatjobs``: workflows of other namespaces run jobs with it (docs/nexus.md)."""

from __future__ import annotations

import hashlib
import logging
import re
from typing import Any

from nexusrpc import OperationError, OperationErrorState
from nexusrpc.handler import service_handler
from temporalio.api.nexus.v1 import EndpointSpec, EndpointTarget
from temporalio.api.operatorservice.v1 import CreateNexusEndpointRequest, ListNexusEndpointsRequest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.nexus import WorkflowHandle, WorkflowRunOperationContext, workflow_run_operation
from temporalio.service import RPCError, RPCStatusCode

from chatjobs.contracts import JOB_ID
from chatjobs.errors import JobIdConflict
from chatjobs.nexus import ENDPOINT, SERVICE
from dispatch.temporal import RPC_TIMEOUT
from domain.names import CHAT_JOB, JOBS_QUEUE

log = logging.getLogger("nexus")

RUNNING = "A job with this jobId is running; start the operation again when it has ended, or leave jobId out"


@service_handler(name=SERVICE)
class NexusService:
    """The operations: each starts the workflow type ChatJob with the request inline, as any caller of Temporal may.

    The operation ends with the run, in the same way: its result, its failure, cancelled. A cancel of the operation is
    one of the run.
    """

    @workflow_run_operation
    async def complete(self, ctx: WorkflowRunOperationContext, request: Any) -> WorkflowHandle[Any]:
        """Run a job. ``request`` is any JSON: ChatJob checks it, and seals the job as failed if it is not valid."""
        try:
            return await ctx.start_workflow(CHAT_JOB, {"request": request}, id=_job_id(request, ctx.request_id))
        except WorkflowAlreadyStartedError:
            conflict = ApplicationError(RUNNING, type=JobIdConflict.code, non_retryable=True)
            raise OperationError(RUNNING, state=OperationErrorState.FAILED) from conflict


def _job_id(request: Any, request_id: str) -> str:
    """The ``jobId`` in a request; else an id that is the same for each try of the operation's start."""
    given = request.get("jobId") if isinstance(request, dict) else None
    if isinstance(given, str) and re.fullmatch(JOB_ID, given):
        return given
    return f"job_{hashlib.sha256(request_id.encode()).hexdigest()[:32]}"


# ---------------------------------------------------------------------------------------------- endpoint


def endpoint_command(namespace: str) -> str:
    """The command that creates the endpoint."""
    target = f"--target-namespace {namespace} --target-task-queue {JOBS_QUEUE}"
    return f"temporal operator nexus endpoint create --name {ENDPOINT} {target}"


async def ensure_endpoint(client: Client) -> bool:
    """Create the Nexus endpoint ``chatjobs`` if the server has none of that name; whether it is there.

    A server without Nexus, or one that refuses, is logged: jobs run without it.
    """
    target = EndpointTarget(worker=EndpointTarget.Worker(namespace=client.namespace, task_queue=JOBS_QUEUE))
    try:
        known = await client.operator_service.list_nexus_endpoints(
            ListNexusEndpointsRequest(name=ENDPOINT), timeout=RPC_TIMEOUT
        )
        if not known.endpoints:
            await client.operator_service.create_nexus_endpoint(
                CreateNexusEndpointRequest(spec=EndpointSpec(name=ENDPOINT, target=target)), timeout=RPC_TIMEOUT
            )
    except RPCError as error:
        if error.status is RPCStatusCode.ALREADY_EXISTS:
            return True
        log.warning("no Nexus endpoint: %s", error, extra={"action": "nexus_endpoint_missing"})
        return False
    return True
