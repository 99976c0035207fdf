"""Methods that learn structure by gates, one file for each."""
