"""Trees that are there already: buckets, web servers, OpenNeuro, OSF, whatever fsspec opens."""
