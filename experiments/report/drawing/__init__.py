"""Draw the paper's figures from what their jobs measured, one file each."""
