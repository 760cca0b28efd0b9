"""What was measured, and on what: versions of all tools, the machine. Nothing that names the machine itself."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import xnatfs

PACKAGES = ("fsspec", "fusepy", "mfusepy", "pyxnat", "xnat", "requests", "urllib3", "aiohttp", "diskcache")
PROGRAMS = {"rclone": ("--version",), "curl": ("--version",), "httpdirfs": ("--version",), "unzip": ("-v",)}


def versions() -> dict[str, str]:
    found = {"xnatfs": f"{xnatfs.__version__}{_commit()}", "python": sys.version.split()[0]}
    for program, flags in PROGRAMS.items():
        found[program] = _program(program, flags)
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        ["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""


def _program(name: str, flags: tuple[str, ...]) -> str:
    if not shutil.which(name):
        return "not installed"
    done = subprocess.run([name, *flags], capture_output=True, text=True, check=False)
    words = (done.stderr + done.stdout).split()
    return next((w.strip(",") for w in words if w[:1].isdigit() or (w[:1] == "v" and w[1:2].isdigit())), "unknown")


def machine(room: Path) -> dict[str, str]:
    """The machine that ``room`` (where caches and copies lie) is on."""
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    kind = subprocess.run(
        ["findmnt", "-no", "FSTYPE", "-T", str(room)], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {
        "cores": f"{os.cpu_count()}{f' ({cpus[0]})' if cpus else ''}",
        "memory": f"{int(memory.split()[1]) * 1024 / 1e9:.0f} GB",
        "kernel": os.uname().release.partition("-")[0],
        "file system of the caches": kind,
    }
