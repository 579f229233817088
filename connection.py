"""Reaching Temporal, the same way from every entry point."""

from __future__ import annotations

import logging
from datetime import timedelta
from urllib.parse import quote

from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError

from chatjobs.errors import TemporalUnavailable
from chatjobs.names import SEARCH_ATTRIBUTES

log = logging.getLogger(__name__)
RPC_TIMEOUT = timedelta(seconds=5)


async def connect() -> Client:
    """A client by the files and ``TEMPORAL_*`` variables of the `temporal` command. Raises TemporalUnavailable."""
    config = ClientConfig.load_client_connect_config()
    address = config.setdefault("target_host", "localhost:7233")
    try:
        return await Client.connect(**config, data_converter=pydantic_data_converter)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise TemporalUnavailable(
            f"Temporal is not reachable at {address}; is the server running, is TEMPORAL_ADDRESS right? ({reason})"
        ) from None


async def indexed(client: Client) -> bool:
    """Whether the namespace has our search attributes; if not, the log says how to create them."""
    request = ListSearchAttributesRequest(namespace=client.namespace)
    try:
        known = await client.operator_service.list_search_attributes(request, timeout=RPC_TIMEOUT)
    except RPCError as error:
        log.warning("search attributes unknown: %s", error, extra={"action": "search_attributes_unknown"})
        return False
    missing = [name for name in SEARCH_ATTRIBUTES if name not in known.custom_attributes]
    if missing:
        names = " ".join(f"--name {name} --type Keyword" for name in missing)
        command = f"temporal operator search-attribute create --namespace {client.namespace} {names}"
        log.warning(
            "jobs run without search attributes; create them with: %s",
            command,
            extra={"action": "search_attributes_missing"},
        )
    return not missing


def run_url(ui: str, namespace: str, job_id: str) -> str:
    """Where the Temporal UI shows a job's run."""
    return f"{ui.rstrip('/')}/namespaces/{quote(namespace, safe='')}/workflows/{quote(job_id, safe='')}"
