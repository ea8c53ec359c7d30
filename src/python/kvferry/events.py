"""The thread that delivers events to a Client's on_event.

While other threads wait for replies they read the connection, events
included; this one polls it only when nobody has for some milliseconds, so it
does not compete with them.
"""
from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict

from .calls import now

if TYPE_CHECKING:
    from .client import Client

_IDLE = 0.005


class EventThread(threading.Thread):
    def __init__(self, client: "Client",
                 on_event: Callable[[Dict[str, Any]], None]) -> None:
        super().__init__(name="kvferry-events", daemon=True)
        self._client = weakref.ref(client)
        self._engine = client._engine
        self._on_event = on_event
        self._news = threading.Event()
        self._engine.on_event = self._news.set

    def run(self) -> None:
        while self._engine.state != "closed":
            self._news.clear()
            while self._engine.events:
                self._deliver(self._engine.events.popleft())
            client = self._client()
            if client is None:
                return
            if not self._lead(client):
                del client
                self._news.wait(_IDLE)

    def _deliver(self, event: Dict[str, Any]) -> None:
        try:
            self._on_event(event)
        except Exception:
            logging.getLogger("kvferry").exception("on_event failed")

    def _lead(self, client: "Client") -> bool:
        e = self._engine
        # Not for ever: the client may be dropped without close().
        until, poller = now() + 0.5, None
        with e.lock:
            if e.state != "closed" and not e.events and \
                    now() - client._led >= _IDLE:
                poller = client._lead(self, until)
        e.settle()
        if poller is not None:
            client._poll(self, poller, until)
        return poller is not None
