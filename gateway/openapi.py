"""``python -m gateway.openapi``: writes the repository's ``openapi.json``."""

from __future__ import annotations

import json
from pathlib import Path

from gateway.app import create_app

DOCUMENT = Path(__file__).parent.parent / "openapi.json"


def text() -> str:
    """The content of ``openapi.json``."""
    return json.dumps(create_app(None).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(text())
