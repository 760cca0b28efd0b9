"""Who asks: each module translates one outside API to the tree and holds no policy."""
