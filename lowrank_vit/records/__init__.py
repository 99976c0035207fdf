"""Plain frozen records that pass from stage to stage."""
