"""What may be missing: packages that only some commands need, and the Hugging Face hub."""

import importlib.util
import os
import socket
import urllib.request
from urllib.parse import urlsplit

from lowrank_vit.runtime.errors import InputError

EXTRAS = {  # by what is imported; pyproject.toml has the distributions
    "cluster": ("submitit",),
    "diffusion": ("diffusers",),
    "experiments": ("matplotlib", "pandas", "sklearn", "wandb"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino",),
    "transformers": ("transformers",),
    "workspaces": ("wandb_workspaces",),
}
EXTRA_OF = {package: extra for extra, packages in EXTRAS.items() for package in packages}
TIMEOUT = 5.0  # seconds


def installed(package: str) -> bool:
    """Tell whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def require(purpose: str, *packages: str) -> None:
    """Raise ``InputError``, which names the extra to install, where one of the packages is missing."""
    missing = [package for package in packages if not installed(package)]
    if missing:
        extras = ",".join(dict.fromkeys(EXTRA_OF[package] for package in missing))
        raise InputError(f"{purpose} needs {', '.join(missing)}: pip install 'lowrank-vit[{extras}]'")


def not_installed(error: ModuleNotFoundError) -> InputError | None:
    """Return the error for a failed import of such a package; None for any other package."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF:
        return None
    return InputError(f"this needs {package}: pip install 'lowrank-vit[{EXTRA_OF[package]}]'")


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
