"""Whether the Hugging Face hub can be reached."""

from __future__ import annotations

import os
import socket
import urllib.request
from urllib.parse import urlsplit

TIMEOUT = 5.0  # seconds


def hub_reachable() -> bool:
    """Tell whether the hub's host accepts a connection within five seconds: its client would retry for a minute.

    ``HF_HUB_OFFLINE`` means no. Behind a proxy a direct connection says nothing, so the answer is yes and the client
    finds out by itself.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "huggingface.co", port), timeout=TIMEOUT):
            return True
    except OSError:
        return False
