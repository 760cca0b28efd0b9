"""A sample archive and an XNAT-compatible server on loopback. Imports nothing of the rest of the package."""
