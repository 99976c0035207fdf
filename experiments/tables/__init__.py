"""Hold the paper's tables and figures as data: a row is one entry."""
