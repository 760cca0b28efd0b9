"""What it looks like: paths, safe names, cached listings, handles."""
