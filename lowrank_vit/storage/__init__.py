"""A model's folder: its files, their checksums, what they may hold, and the hub."""
