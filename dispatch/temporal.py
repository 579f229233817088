"""The connection to Temporal, for every entry point, and queries about it."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from urllib.parse import quote

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionDescription
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCError, RPCStatusCode

from chatjobs.errors import ConfigurationError
from domain.errors import TemporalUnavailable
from domain.names import SEARCH_ATTRIBUTES
from domain.values import RunRef, StoredJob

log = logging.getLogger(__name__)
RPC_TIMEOUT = timedelta(seconds=5)
POLLS_WITHIN = timedelta(seconds=75)
"""Pollers older than this do not count: a poll lasts 60 s at most, but Temporal lists pollers for five minutes."""

T = TypeVar("T")


async def connect(environment: Mapping[str, str] | None = None, *, lazy: bool = False) -> Client:
    """A client by the files and ``TEMPORAL_*`` variables of the `temporal` command.

    ``environment`` replaces this process's own. ``lazy``: connect at the first call, which may fail then.
    Raises TemporalUnavailable, ConfigurationError.
    """
    config = configured(environment)
    address = config.setdefault("target_host", "localhost:7233")
    try:
        return await Client.connect(**config, data_converter=pydantic_data_converter, lazy=lazy)
    except ValueError:
        raise ConfigurationError(
            f"TEMPORAL_ADDRESS must be host:port, such as localhost:7233; it is {address}"
        ) from None
    except RuntimeError as error:
        reason = _reason(error)
        raise TemporalUnavailable(
            f"Temporal is not reachable at {address} ({reason}); is the server running, is TEMPORAL_ADDRESS right?"
        ) from None


def silence_core() -> None:
    """Stop the SDK's native part from writing its log to standard output. For programs without a log."""
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=None)), error_if_already_set=False)


def configured(environment: Mapping[str, str] | None = None) -> ClientConnectConfig:
    """The configuration of the connection from files and variables. Raises ConfigurationError."""
    try:
        return ClientConfig.load_client_connect_config(override_env_vars=environment)
    except RuntimeError as error:  # the SDK's own class is private
        raise ConfigurationError(f"TEMPORAL_PROFILE or TEMPORAL_CONFIG_FILE is wrong: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The operating system's message if the Rust core's text has one; else the text's first line."""
    if "dns error" in str(error):
        return "its name is not known"
    words = re.search(r'message: "([^"]+)"', str(error))
    return words[1] if words else str(error).splitlines()[0]


async def dial(host: str, port: int, seconds: float) -> str | None:
    """The reason for which no TCP connection is possible; None if one is. Takes at most ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            await in_daemon_thread(lambda: socket.create_connection((host, port), seconds).close())
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except UnicodeError:
        return "its name is not valid"
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread that does not delay the exit: a call that hangs in the operating system cannot be
    cancelled."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised by the await below
            done.set_exception(error)

    threading.Thread(target=run, name="daemon", daemon=True).start()
    return await asyncio.wrap_future(done)


async def indexed(client: Client) -> bool:
    """Whether the namespace has our search attributes; logs if it has not, or if Temporal is unavailable."""
    try:
        return await search_attributes(client)
    except TemporalUnavailable as error:
        log.warning("search attributes unknown: %s", error, extra={"action": "search_attributes_unknown"})
        return False


async def search_attributes(client: Client) -> bool:
    """Whether the namespace has our search attributes; if not, the log has the command that creates them.

    Raises TemporalUnavailable.
    """
    missing = await missing_search_attributes(client)
    if missing:
        log.warning(
            "jobs run without search attributes; create them with: %s",
            search_attributes_command(client.namespace, missing),
            extra={"action": "search_attributes_missing"},
        )
    return not missing


async def missing_search_attributes(client: Client) -> list[str]:
    """Our search attributes that the namespace lacks. Raises TemporalUnavailable."""
    request = ListSearchAttributesRequest(namespace=client.namespace)
    try:
        known = await client.operator_service.list_search_attributes(request, timeout=RPC_TIMEOUT)
    except (RPCError, RuntimeError) as error:  # the latter: a lazy client that cannot connect
        raise TemporalUnavailable(f"Temporal is not reachable ({_reason(error)})") from None
    return [name for name in SEARCH_ATTRIBUTES if name not in known.custom_attributes]


def search_attributes_command(namespace: str, names: Sequence[str]) -> str:
    """The command that creates search attributes."""
    options = " ".join(f"--name {name} --type Keyword" for name in names)
    return f"temporal operator search-attribute create --namespace {namespace} {options}"


async def polls(client: Client, queue: str, pid: int) -> bool:
    """Whether a process polls a queue for activities, by Temporal's list of pollers.

    A list that is not empty is not enough: dead processes stay on it for minutes.
    """
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
    )
    try:
        found = await client.workflow_service.describe_task_queue(request, timeout=RPC_TIMEOUT)
    except RPCError:
        return False
    return any(poller.identity.startswith(f"{pid}@") for poller in found.pollers)


async def runs_of(client: Client, run: RunRef) -> list[WorkflowExecutionDescription]:
    """A run and those that an operator's Resets made of it, oldest first; empty if Temporal has none.

    Raises RPCError, RuntimeError.
    """
    found: list[WorkflowExecutionDescription] = []
    run_id, seen = run.run_id, set[str | None]()
    while run_id not in seen:
        seen.add(run_id)
        handle = client.get_workflow_handle(run.workflow_id, run_id=run_id)
        try:
            described = await handle.describe(rpc_timeout=RPC_TIMEOUT)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return found
            raise
        found.append(described)
        reset_to = described.raw_description.workflow_extended_info.reset_run_id
        if run.run_id is None or not reset_to:  # the workflow's newest run was requested
            return found
        run_id = reset_to
    return found


async def pollers(client: Client, queue: str, kind: TaskQueueType.ValueType) -> int:
    """The number of workers that have polled a queue within POLLS_WITHIN. Raises RPCError."""
    request = DescribeTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind
    )
    found = await client.workflow_service.describe_task_queue(request, timeout=RPC_TIMEOUT)
    since = datetime.now(UTC) - POLLS_WITHIN
    return len({one.identity for one in found.pollers if one.last_access_time.ToDatetime(UTC) > since})


class RunLinks:
    """Addresses of workflow runs in the Temporal UI. ``ui``: the URL of the UI's root."""

    def __init__(self, ui: str, namespace: str) -> None:
        root = f"{ui.rstrip('/')}/namespaces/{quote(namespace, safe='')}"
        self._workflows, self._schedules = f"{root}/workflows", f"{root}/schedules"

    def of(self, run: RunRef) -> str:
        """Where the UI shows a run; without ``run_id``, the workflow's newest."""
        url = f"{self._workflows}/{quote(run.workflow_id, safe='')}"
        return url if run.run_id is None else f"{url}/{run.run_id}"

    def of_schedule(self, name: str) -> str:
        """Where the UI shows a schedule."""
        return f"{self._schedules}/{quote(name, safe='')}"

    def with_url(self, job: StoredJob) -> StoredJob:
        """The job with its ``temporal_url``."""
        return job.model_copy(update={"temporal_url": self.of(job.run)})
