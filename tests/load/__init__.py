"""A campaign of jobs on a machine where everything goes wrong now and then."""
