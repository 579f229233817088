"""nginx in front of a gateway, with its defaults: ``with nginx(tmp_path, gateway.url) as url``."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
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
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {url}; }}
  }}
}}
"""
PATHS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
READY_SECONDS = 30


@contextmanager
def nginx(home: Path, url: str) -> Iterator[str]:
    """The address of the proxy, until the end of the block. Skips the test where nginx is missing."""
    binary = program("nginx")
    port = free_port()
    paths = "\n  ".join(f"{name}_temp_path {home}/{name};" for name in PATHS)
    config = home / "nginx.conf"
    config.write_text(CONFIG.format(home=home, port=port, url=url, paths=paths))
    with subprocess.Popen([binary, "-c", str(config), "-e", str(home / "error.log")]) as process:
        try:
            _wait(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            httpx2.get(f"{url}/healthz", trust_env=False).raise_for_status()
            return
        except httpx2.HTTPError:
            assert process.poll() is None, "nginx has ended"
            assert time.monotonic() < deadline, "nginx does not answer"
            time.sleep(0.02)
