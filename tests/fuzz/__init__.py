"""Random inputs to everything that reads what a user, or a folder from elsewhere, gives."""
