"""nginx in front of a gateway, with its defaults: ``with nginx(tmp_path, gateway.url) as url``.

In front of Temporal: ``with older_temporal(tmp_path, temporal.address, "~ Nexus") as address``.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.support.needs import program
from tests.support.stack import free_port

CONFIG = """
daemon off;
master_process off;
worker_processes 1;
pid {home}/pid;
error_log {home}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  {paths}
  server {{
    {server}
  }}
}}
"""
GATEWAY = """
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {url}; }}
"""
TEMPORAL = """
    listen 127.0.0.1:{port} http2;
    client_max_body_size 0;
    grpc_read_timeout 300s;
    grpc_send_timeout 300s;
    location / {{ grpc_pass grpc://{address}; }}
    location /healthz {{ return 200; }}
"""
UNKNOWN = """
    location {path} {{
      default_type application/grpc;
      add_header grpc-status 12;
      add_header grpc-message "unknown method";
      return 204;
    }}
"""
PATHS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
READY_SECONDS = 30


@contextmanager
def nginx(home: Path, url: str) -> Iterator[str]:
    """The address of the proxy, until the end of the block. Skips the test where nginx is missing."""
    port = free_port()
    with _running(home, GATEWAY.format(port=port, url=url)):
        _wait(lambda: httpx2.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).raise_for_status())
        yield f"http://127.0.0.1:{port}"


@contextmanager
def older_temporal(home: Path, address: str, *unknown: str) -> Iterator[str]:
    """The address of a Temporal server that does not know some methods of gRPC: ``"/service/method"``, or a pattern
    (``"~ Nexus"``). Skips the test where nginx is missing."""
    port = free_port()
    unknown_methods = "".join(UNKNOWN.format(path=path) for path in unknown)
    with _running(home, TEMPORAL.format(port=port, address=address) + unknown_methods):
        _wait(lambda: socket.create_connection(("127.0.0.1", port)).close())
        yield f"127.0.0.1:{port}"


@contextmanager
def _running(home: Path, server: str) -> Iterator[None]:
    home.mkdir(exist_ok=True)
    binary = program("nginx")
    paths = "\n  ".join(f"{name}_temp_path {home}/{name};" for name in PATHS)
    config = home / "nginx.conf"
    config.write_text(CONFIG.format(home=home, paths=paths, server=server))
    with subprocess.Popen([binary, "-c", str(config), "-e", str(home / "error.log")]) as process:
        try:
            yield
        finally:
            process.kill()


def _wait(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            look()
            return
        except (httpx2.HTTPError, OSError):
            assert time.monotonic() < deadline, "nginx does not answer"
            time.sleep(0.02)
