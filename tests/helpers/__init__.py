"""Servers and mounts for tests."""
