"""Fetches parts of a file beside its reader's own stream: by further streams of a slow connection, and at strides.

Each part is one ``Transfer`` of a range that nobody else has asked for, in a thread that ends when there is nothing to
fetch. Only for archives that honour ranges; takes connections that nobody waits for, and leaves them to who does. Knows
no archive and no disk. Safe from any thread; a flight's condition guards what is about one file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from xnatfs.blocks.base import BlockCache, BlockKey, Claims
from xnatfs.config import MIB, ReadConfig
from xnatfs.reading.flight import Flight
from xnatfs.reading.prefetch import GRAIN, STREAM_FROM
from xnatfs.reading.streams import MOST_STREAMS, Sample, StreamCount
from xnatfs.reading.strides import Span

if TYPE_CHECKING:
    from xnatfs.reading.slots import TransferSlots
    from xnatfs.reading.transfer import Transfer

STRIPE = 4 * MIB
"""Bytes that one of several streams asks for at a time, at most: four are as much as a reader may run ahead. At 20 MB/s
they take 0.2 s, beside which an answer's 20 ms are little."""

KNOWN_S = 60.0
"""Seconds for which a number of streams that was found for one file is taken for others of the archive. A guess."""

CLOSE_BY = 8 * GRAIN
"""Bytes that a stream may have to go to a place at a stride: one that is further off, and pauses, may not get there."""

_ANYWHERE = 1 << 62


class Beside:
    """What may be fetched beside the readers of one archive.

    Args:
        new_transfer: Makes one that has not begun.
        alone: Nothing is to be fetched beside a reader.
    """

    def __init__(
        self,
        config: ReadConfig,
        block_size: int,
        cache: BlockCache,
        slots: TransferSlots,
        claims: Claims | None,
        new_transfer: Callable[[Flight], Transfer],
        alone: bool = False,
    ) -> None:
        self._alone = alone
        self._cache = cache
        self._slots = slots
        self._claims = claims
        self._new_transfer = new_transfer
        self._block_size = block_size
        self._stripe = max(block_size, min(STRIPE, config.max_window // 4) // block_size * block_size)
        self._most = min(MOST_STREAMS, (config.max_transfers + 1) // 2, max(1, config.max_window // self._stripe))
        self._max_window = config.max_window
        self._known = (0, 0.0)  # the number of streams found last, and until when it holds

    # --- for readers -------------------------------------------------------------------------------------------

    def led(self, flight: Flight, start: int, asked_stop: int, stop: int, window: int) -> int:
        """Under the flight's condition: a reader at [start, stop) begins a transfer up to ``asked_stop``; where to end.

        One of several streams ends with its stripe; the others go on behind it.
        """
        if self._alone or window < STREAM_FROM or not self._slots.ranged or asked_stop - start < 2 * self._stripe:
            return asked_stop
        if flight.streams is None:
            flight.streams = StreamCount(self._most, self._known_count())
        flight.streams.restart()
        if flight.streams.count < 2:
            return asked_stop
        if start < flight.stripes_at <= start + 2 * self._max_window:  # a stripe that its transfer left unfinished
            return min(asked_stop, self._stripe_stop(start))
        asked_stop = min(asked_stop, self._stripe_stop(start + self._stripe // 2))
        flight.stripes_from, flight.stripes_at = start, asked_stop
        flight.stripes_goal = stop + window
        return asked_stop

    def advance(self, flight: Flight, stop: int, window: int) -> None:
        """A reader of a file with several streams is at ``stop``."""
        if not 0 <= flight.stripes_at - stop <= 2 * self._max_window:
            return  # elsewhere in the file
        flight.stripes_goal = max(flight.stripes_goal, stop + window)
        self._start(flight)

    def fetch(self, flight: Flight, spans: Sequence[Span]) -> None:
        """Have these parts of a file fetched soon, unless they are cached."""
        if self._alone or not spans or self._missing(flight, *spans[0]) is None:
            return
        with flight.cond:
            flight.spans.extend(spans)
        self._start(flight)

    def forget(self, flight: Flight) -> None:
        """What was to be fetched at strides is not wanted any more."""
        with flight.cond:
            flight.spans.clear()

    # --- for transfers -----------------------------------------------------------------------------------------

    def passed(self, flight: Flight, transfer: Transfer) -> None:
        """Behind each piece, by the thread that runs the transfer: look whether another stream pays."""
        streams = flight.streams
        if streams is None or not (transfer.beside or transfer.asked_stop - transfer.start >= 2 * self._stripe):
            return
        if streams.settled and (streams.count < 2 or transfer.beside):
            return
        if streams.count == 1 and not (transfer.may_be_cut and self._slots.has_spare):
            return
        totals = Sample(time.monotonic(), flight.moved, flight.waited_s(), time.process_time())
        with flight.cond:
            tried = not streams.settled
            streams.note(totals)
            if streams.count > 1 and not transfer.beside:
                self._cut(flight, transfer)
        if streams.settled and tried:
            self._known = (streams.count, time.monotonic() + KNOWN_S)
        if streams.count > 1:
            self._start(flight)

    # --- inside ------------------------------------------------------------------------------------------------

    def _known_count(self) -> int:
        count, until_s = self._known
        return count if time.monotonic() < until_s else 0

    def _stripe_stop(self, at: int) -> int:
        return (at // self._stripe + 1) * self._stripe

    def _cut(self, flight: Flight, transfer: Transfer) -> None:
        """Under the condition: let a stream that was to send the rest of the file end soon, for others to go on."""
        at = self._stripe_stop(transfer.position + self._block_size)
        if transfer.may_be_cut and transfer.cut(at, 2 * self._stripe):
            flight.stripes_from, flight.stripes_at = transfer.start, at
            flight.stripes_goal = transfer.limit

    def _start(self, flight: Flight) -> None:
        """Start one more thread, if there is something to fetch for it. More follow as the reader goes on."""
        if not self._slots.has_spare:
            return
        with flight.cond:
            if self._next_span(flight, flight.workers + 1) is None:
                return
            flight.workers += 1
        threading.Thread(target=self._work, args=(flight,), name="xnatfs-transfer", daemon=True).start()

    def _work(self, flight: Flight) -> None:
        try:
            while (transfer := self._begin(flight)) is not None:
                transfer.open()
                transfer.run()
                if transfer.error is not None:
                    self._failed(flight)
                if transfer.error is not None or transfer.gave_way:
                    return
        finally:
            with flight.cond:
                flight.workers -= 1
            if flight.claim is not None:
                flight.unclaim()

    def _failed(self, flight: Flight) -> None:
        """The server may mind so many: readers ask by themselves, and see what it says to that."""
        with flight.cond:
            flight.spans.clear()
            if flight.streams is not None:
                flight.streams.give_up()
        self._known = (1, time.monotonic() + KNOWN_S)

    def _begin(self, flight: Flight) -> Transfer | None:
        """A transfer of the next part, which has a connection and has been announced; None when there is none."""
        while True:
            with flight.cond:
                span = self._next_span(flight, flight.workers)
            if span is None or not self._is_ours(flight):
                return None
            missing = self._missing(flight, *span)  # looks on disk, so not under the condition
            transfer = self._new_transfer(flight)
            if missing is not None and not self._slots.take_spare(transfer):
                return None
            with flight.cond:
                if self._next_span(flight, flight.workers) == span:
                    far = CLOSE_BY if flight.spans else _ANYWHERE
                    window = self._take(flight, span)
                    if missing is not None and flight.covering(missing[0], far, True) is None:
                        start, stop = missing[0], flight.stop_before_next(*missing)
                        transfer.begin(start, stop, start, window)
                        flight.add(transfer)
                        return transfer
            if missing is not None:
                self._slots.release(transfer)

    def _next_span(self, flight: Flight, workers: int) -> Span | None:
        """Under the condition: what is to be fetched next when there are so many threads for it, or None."""
        if flight.error is not None or not flight.opens or self._slots.closed:
            return None
        if flight.spans:
            return flight.spans[0] if workers <= self._most else None
        streams = flight.streams
        if streams is None or streams.count < 2:
            return None
        leading = sum(not transfer.beside for transfer in flight.transfers)
        start = flight.stripes_at
        if workers + leading > streams.count or not start < min(self._goal(flight), flight.size):
            return None
        return start, min(self._stripe_stop(start), flight.size)

    def _take(self, flight: Flight, span: Span) -> int:
        """Under the condition: it is asked for. How far to run ahead: as a stripe's readers want it, or all of it."""
        if flight.spans:
            flight.spans.popleft()
            return _ANYWHERE
        flight.stripes_at = span[1]
        return self._goal(flight) - span[0]

    def _goal(self, flight: Flight) -> int:
        claim = flight.claim
        return max(flight.stripes_goal, 0 if claim is None else claim.wanted())

    def _is_ours(self, flight: Flight) -> bool:
        """Whether we have the claim on the file, as far as other processes may fetch it."""
        if self._claims is None or flight.claim is not None:
            return True
        claim = self._claims.take(flight.base)
        if claim is None:
            return False
        spare = flight.claimed(claim)
        if spare is not None:
            spare.release()
        return True

    def _missing(self, flight: Flight, start: int, stop: int) -> Span | None:
        """[start, stop) without what is cached at its ends, in whole grains."""
        start = start // GRAIN * GRAIN
        stop = min(flight.size, -(-stop // GRAIN) * GRAIN)
        while start < stop and (kept := self._kept_from(flight, start)):
            start += kept
        while start < stop and self._kept_from(flight, (stop - 1) // GRAIN * GRAIN):
            stop = (stop - 1) // GRAIN * GRAIN
        return (start, stop) if start < stop else None

    def _kept_from(self, flight: Flight, at: int) -> int:
        """How many bytes from the start of a grain are cached in one piece; 0 when it is not."""
        content = flight.content
        if content is None:
            return 0
        for unit in (self._block_size, GRAIN):
            number, begins = divmod(at, unit)
            if self._cache.get_span(BlockKey(content, number, unit), begins, begins + 1) is not None:
                return unit - begins
        return 0
