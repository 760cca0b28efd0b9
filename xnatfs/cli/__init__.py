"""The ``xnatfs`` command: argv, exit codes, text."""
