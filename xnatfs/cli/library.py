"""The settings of a program that has no command line: keyword arguments in place of flags, the rest found as ever.

What `xnatfs mount` takes from XNATFS_... variables, the config file and the places where passwords lie, an fsspec
file system takes too. Opens nothing. Safe from any thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from xnatfs.cli.credentials import config_for
from xnatfs.cli.options import CACHE, SERVER, TCIA, VIEW, Settings, default_config_path, known_option, load_settings
from xnatfs.cli.sources import parse_source
from xnatfs.config import Config, Source
from xnatfs.errors import UsageError

_GROUPS = (SERVER, VIEW, TCIA, CACHE)


def settings_of(options: Mapping[str, object]) -> Settings:
    """Every setting, with ``options`` in the place of flags: ``{"cache_size": "50G", "anonymous": True}``.

    Raises:
        UsageError: an option that does not exist, or only for a mount; a value that makes no sense; a password.
    """
    flags = {}
    for name, value in options.items():
        option = known_option(name.replace("_", "-"), "storage option")
        if option.group not in _GROUPS:
            raise UsageError(f"storage option {name!r}: only a mount has that")
        flags[option.key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return load_settings(flags, (), os.environ, default_config_path())


def source_of(text: str) -> Source:
    """What a SOURCE means. Raises UsageError."""
    return parse_source(text)


def config_of(source: str, options: Mapping[str, object]) -> Config:
    """The whole configuration of one SOURCE, its credentials looked up where the command line looks.

    Raises:
        CredentialsError: as `xnatfs mount` would say it.
        UsageError: as ``settings_of``; a SOURCE that is none.
    """
    return config_for(source, settings_of(options))
