"""``xnatfs mount`` and ``xnatfs umount``. Runs in the main thread, and before any other thread is there.

What can be refused is refused before a process is left behind; the server is asked before anything is mounted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from xnatfs.cli import daemon
from xnatfs.cli.credentials import config_for
from xnatfs.cli.options import CACHE, MESSAGES, MOUNT, SERVER, VIEW, MountPoint, OptionsCommand, Settings, with_options
from xnatfs.config import Config
from xnatfs.errors import UsageError, XnatfsError

END_LIMIT_S = 30.0  # for a mount's process to end after it was unmounted: it writes the cache's last blocks
GARBAGE_THRESHOLDS = (50_000, 20, 50)
"""In place of Python's (700, 10, 10): a crawl makes records by the hundred thousand and few cycles among them, and
looking for these took a sixth of its CPU time. Guesses beyond that."""
START_SLACK_S = 30.0  # beyond two timeouts of the server, for imports on a busy machine


@click.command(cls=OptionsCommand)
@click.argument("source")
@click.argument("mountpoint", type=MountPoint())
@with_options(SERVER, VIEW, CACHE, MOUNT, MESSAGES)
def mount(source: str, mountpoint: Path, settings: Settings) -> int:
    """Mount an archive as a read-only folder.

    MOUNTPOINT is an empty directory. The command returns when the mount can be used, and a process in the background
    serves it until `xnatfs umount MOUNTPOINT`.
    """
    return mount_and_serve(config_for(source, settings), mountpoint, settings.foreground, settings.log_file)


@click.command()
@click.argument("mountpoint", type=MountPoint())
def umount(mountpoint: Path) -> int:
    """Unmount it.

    Refused while a program uses the mount; the message names the program. Returns when the mount's process has ended.
    """
    return unmount(mountpoint)


def mount_and_serve(config: Config, mountpoint: Path, foreground: bool, log_file: Path | None) -> int:
    """Mount; return 0 when the mount answers, or in the foreground when it has been unmounted.

    Raises:
        FuseError: no FUSE, or a mount point that cannot be used.
        UsageError: our own files would lie below it.
        ArchiveError: the server could not be asked for its top directory.
    """
    from xnatfs.frontends import fuse_binding
    from xnatfs.frontends.mountpoint import prepare

    fuse_binding.load(config.mount.fuse)
    target = prepare(mountpoint, allow_other=config.mount.allow_other)
    _keep_out_of(target, config)
    daemon.forget_secrets()
    if foreground:
        serve(config, target, lambda: None)
        return 0
    limit_s = 2 * config.http.timeout_s + START_SLACK_S
    return daemon.start(lambda ready: serve(config, target, ready), log_file, limit_s)


def _keep_out_of(target: Path, config: Config) -> None:
    """Refuse to mount over our own files: to read its cache, the mount would ask itself.

    Raises:
        UsageError: they would lie below the mount point, as with a home directory that is still empty.
    """
    for what, place in (("cache", config.cache.directory), ("session", config.http.session_dir)):
        if place is not None and place.resolve().is_relative_to(target):
            hint = "name another: --cache-dir DIR" if what == "cache" else "set XDG_RUNTIME_DIR to a directory of yours"
            raise UsageError(f"mount {target}: the {what} directory {place} would lie below it", hint)


def serve(config: Config, target: Path, ready: Callable[[], None]) -> None:
    """Open the archive, mount it at ``target`` (prepared), call ``ready`` and answer until unmounted."""
    import gc
    import os

    from xnatfs.cli.control import ControlSocket
    from xnatfs.cli.status import RecentMessages, report
    from xnatfs.factory import open_vfs
    from xnatfs.frontends import fuse
    from xnatfs.stats import Stats

    record = daemon.Record()
    stats = Stats()
    messages = RecentMessages(stats)
    control: list[ControlSocket] = []
    fsname = config.source.url + ("" if config.source.inside == "/" else f"#{config.source.inside}")

    def publish() -> None:
        device = target.stat().st_dev
        record.write(f"{os.major(device)}:{os.minor(device)}", target, fsname)
        if record.socket is not None:
            control.append(ControlSocket(record.socket, lambda: report(config, target, stats)))
            control[0].start()
        ready()

    gc.freeze()  # what is imported stays
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    vfs = open_vfs(config, stats)
    messages.listen()
    try:
        # A wrong address or password is met here, before there is a mount.
        without_stop_signals(lambda: vfs.listdir("/"))
        fuse.mount(vfs, target, config.mount, fsname=fsname, ready=publish)
    finally:
        record.remove()  # first: nothing is mounted any more, only the process takes a while to end
        for socket in control:
            socket.close()
        vfs.close()
        messages.close()


def without_stop_signals(task: Callable[[], object]) -> None:
    """Run ``task`` in a thread that takes no stop signal, and wait, so that no thread which it starts takes one either.

    A thread that did would swallow the signal that is to end the mount: the kernel gives it to any thread that lets it
    through, and only one of ours, started by ``fuse.mount``, knows what to do. Here, meanwhile, signals work as ever.
    """
    import signal
    import threading

    from xnatfs.frontends.fuse import STOP_SIGNALS

    failures: list[BaseException] = []

    def run() -> None:
        try:
            task()
        except BaseException as exc:  # noqa: BLE001  # raised again below
            failures.append(exc)

    thread = threading.Thread(target=run, name="xnatfs-first", daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    thread.join()
    for failure in failures:
        raise failure


def unmount(mountpoint: Path) -> int:
    """Unmount, and return 0 when the process that served the mount has ended.

    Raises:
        XnatfsError: nothing of ours is mounted there, or it is in use.
    """
    from xnatfs.frontends.mountpoint import OWN_TYPE, detach, find_mount, is_dead, resolve
    from xnatfs.frontends.mountpoint import unmount as take_away

    path = resolve(mountpoint)
    mounted = find_mount(path)
    if mounted is None:
        raise XnatfsError(f"umount {mountpoint}: nothing is mounted there")
    if mounted.fs_type != OWN_TYPE:
        raise XnatfsError(f"umount {mountpoint}: what is mounted there is not of xnatfs but {mounted.fsname}")
    if is_dead(path):
        detach(path)
        if find_mount(path) is not None:
            raise XnatfsError(f"umount {mountpoint}: the dead mount cannot be taken away", f"fusermount3 -uz {path}")
        return 0
    with daemon.end_of(mounted.device, mounted.uid, END_LIMIT_S):
        take_away(path)
    return 0
