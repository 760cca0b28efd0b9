"""Tests, lowest layer first: unit, conformance, property, demo, mount, tools, examples."""
