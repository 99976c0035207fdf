"""What can be made smaller in a scan, one file each."""
