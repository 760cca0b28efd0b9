"""What the server has been asked, for tests and benchmarks: one record a request, and the counts of logins.

Records are made on the event loop; a record's ``sent`` follows its sending thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xnatfs.demo.sending import Meter


@dataclass(slots=True)
class Record:
    """One request. ``sent`` counts body bytes that the kernel took; ``done`` is set when the answer has ended.

    ``peer`` is the client's address, without its port.
    """

    n: int
    method: str
    path: str
    query: str
    range: str
    user_agent: str
    started_s: float
    peer: str = ""
    status: int = 0
    user: str = ""
    session: str = ""
    aborted: bool = False
    done: bool = False
    fault: str = ""
    ended_s: float = 0.0
    meter: Meter = field(default_factory=Meter)

    def as_json(self) -> dict[str, object]:
        return {
            "n": self.n,
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "status": self.status,
            "sent": self.meter.sent,
            "range": self.range,
            "user": self.user,
            "session": self.session,
            "aborted": self.aborted,
            "done": self.done,
            "fault": self.fault,
            "user_agent": self.user_agent,
            "peer": self.peer,
            "started_s": round(self.started_s, 6),
            "ended_s": round(self.ended_s, 6),
        }


@dataclass(slots=True)
class RequestLog:
    records: list[Record] = field(default_factory=list)
    in_flight: int = 0
    max_in_flight: int = 0
    _next: int = 1

    def begin(self, record: Record) -> None:
        record.n = self._next
        self._next += 1
        self.records.append(record)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def end(self, record: Record, now_s: float) -> None:
        record.done = True
        record.ended_s = now_s
        self.in_flight -= 1

    def clear(self) -> None:
        """Forget what has ended; requests under way stay, or their end would be counted for nothing."""
        self.records = [r for r in self.records if not r.done]
        self.max_in_flight = self.in_flight
