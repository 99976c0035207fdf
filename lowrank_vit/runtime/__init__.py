"""The foundations of the package: errors, registries, files, processes, progress, provenance."""
