"""What Prometheus and load balancers ask: `/metrics`, `/healthz`, `/readyz`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ci_pipeline.hud.ci_runs import WarehouseUnavailable, warehouse
from ci_pipeline.oot.relay import Relay
from ci_pipeline.oot.store import StoreUnavailable
from ci_pipeline.services import Services
from ci_pipeline.warehouse import history, oot

log = logging.getLogger(__name__)

MEASURED = ("/github/callback", "/github/webhook", "/api/oot/results")
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The metrics of one application: what it took, and what is to be seen in warehouse and relay when it is asked."""

    def __init__(self, services: Services, *, pages: bool = True) -> None:
        self.registry = CollectorRegistry()
        labels = ("path", "status")
        self._requests = Counter("oot_requests", "Requests by answer", labels, registry=self.registry)
        self._seconds = Histogram(
            "oot_request_seconds", "Time to the answer", ("path",), buckets=_BUCKETS, registry=self.registry
        )
        self._services = services
        self._pages = pages

    def measured(self, app: ASGIApp) -> ASGIApp:
        """The application, with the requests of other people's CI counted and timed."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            path = scope["path"].rstrip("/") if scope["type"] == "http" and scope["method"] == "POST" else ""
            if path not in MEASURED:
                await app(scope, receive, send)
                return
            status = 500
            start = time.perf_counter()

            async def sending(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, sending)
            finally:
                self._requests.labels(path, str(status)).inc()
                self._seconds.labels(path).observe(time.perf_counter() - start)

        return serve

    def router(self) -> APIRouter:
        router = APIRouter(tags=["operation"])

        @router.get("/healthz")
        def healthz() -> dict[str, str]:
            return {"status": "ok"}

        @router.get("/readyz", responses={503: {"description": "Not able to answer; `detail` says why"}})
        def readyz(request: Request) -> Response:
            """Whether the warehouse, for pages, and the store, for a relay, answer."""
            try:
                if self._pages:
                    with warehouse(self._services) as client:
                        oot.arrived(client)
                if relay := _relay(request.app):
                    relay.store.record("none")
            except (WarehouseUnavailable, StoreUnavailable) as error:
                return JSONResponse({"detail": str(error)}, 503)
            return JSONResponse({"status": "ok"})

        @router.get("/metrics", response_class=Response)
        def metrics(request: Request) -> Response:
            """In Prometheus' text format."""
            seen = CollectorRegistry()
            seen.register(_Seen(self._services, _relay(request.app)))
            return Response(generate_latest(self.registry) + generate_latest(seen), media_type=CONTENT_TYPE_LATEST)

        return router


class _Seen(Collector):
    """What is there when it is asked. What cannot be asked has no value."""

    def __init__(self, services: Services, relay: Relay | None) -> None:
        self._services = services
        self._relay = relay

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = 0
        try:
            with warehouse(self._services) as client:
                arrived, _ = oot.arrived(client)
                lag = oot.lag(client)
                newest = history.latest_runs(client, 1)
            up = 1
            if arrived:
                about = "When the newest out-of-tree job arrived in the warehouse"
                yield GaugeMetricFamily("oot_arrived_timestamp_seconds", about, arrived.timestamp())
            if lag is not None:
                yield GaugeMetricFamily("oot_replication_lag_seconds", "Store to warehouse, of the newest job", lag)
            if newest and (created_at := newest[0].run.created_at):
                about = "When the newest CI run in the warehouse was created"
                yield GaugeMetricFamily("ci_run_created_timestamp_seconds", about, created_at.timestamp())
        except WarehouseUnavailable as error:
            log.warning("%s", error)
        yield GaugeMetricFamily("warehouse_up", "1 when the warehouse answers", up)
        if self._relay and self._relay.outbox:
            pending = self._relay.outbox.pending()
            yield GaugeMetricFamily("oot_queue_messages", "Results kept for the HUD", pending)


def _relay(app: FastAPI) -> Relay | None:
    return getattr(app.state, "relay", None)
