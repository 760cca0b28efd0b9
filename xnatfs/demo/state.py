"""What one server holds, and what can be changed while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from xnatfs.demo.auth import Gate
from xnatfs.demo.faults import FaultList
from xnatfs.demo.records import Archive
from xnatfs.demo.requestlog import RequestLog
from xnatfs.demo.sending import Link


@dataclass(slots=True)
class Switches:
    """What can be changed while the server runs; bandwidth is in ``Link``, faults in ``FaultList``."""

    latency_s: float = 0.0
    range: bool = False
    outage: bool = False
    firewall_status: int = 500
    agreement: bool = False  # as ConnectomeDB: terms of use in place of everything until they are accepted
    buckets: bool = False  # every project as an open bucket, too
    nbia_v4: bool = True  # off: an NBIA server from before 2025, which has v1 and v2 only
    old_listings: bool = False  # as XNAT 1.7: one file that is gone from disk makes the whole list a 500


@dataclass(slots=True)
class DemoState:
    """Everything one server holds."""

    archive: Archive
    gate: Gate
    switches: Switches
    link: Link = field(default_factory=Link)
    faults: FaultList = field(default_factory=FaultList)
    log: RequestLog = field(default_factory=RequestLog)
