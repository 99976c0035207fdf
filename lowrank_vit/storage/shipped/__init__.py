"""Models that come with the package, as ``compress`` wrote them; loaded by their names where no folder has that name.

``deit_tiny_4mib`` is DeiT-Tiny (Apache-2.0) in 4 MiB; its ``report.json`` has the command that made it.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def shipped() -> list[str]:
    """List the names."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def shipped_folder(name: str | Path) -> Path | None:
    """Return the folder of a model that comes with the package; None for any other name, or where a folder has it."""
    return None if str(name) not in shipped() or Path(name).exists() else FOLDER / str(name)
