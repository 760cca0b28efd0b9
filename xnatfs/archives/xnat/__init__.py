"""XNAT servers."""
