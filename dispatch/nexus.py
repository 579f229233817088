"""The Nexus endpoint, by which other namespaces reach the service ``chatjobs`` (docs/nexus.md)."""

from __future__ import annotations

import logging

from temporalio.api.nexus.v1 import EndpointSpec, EndpointTarget
from temporalio.api.operatorservice.v1 import CreateNexusEndpointRequest, ListNexusEndpointsRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from chatjobs.nexus import ENDPOINT
from dispatch.temporal import RPC_TIMEOUT
from domain.names import JOBS_QUEUE

log = logging.getLogger("nexus")


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
