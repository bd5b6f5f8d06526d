"""The Kafka shell of payment: store requests, call the provider, publish the outcomes.

Three independent stages each wait for one dependency: the agent for Postgres, one job queue for the provider, another
one for Kafka. Each stage starts from rows that the stage before it has stored, so it may crash anywhere and be retried.
"""

from collections.abc import Awaitable, Callable, Sequence

from contracts.envelope import Envelope
from contracts.payments import EVENTS, Request
from contracts.topics import Topic
from contracts.trace_context import child_traceparent
from infrastructure.messaging.batch_processor import ReceivedMessage
from infrastructure.observability import metrics
from infrastructure.process.failpoints import failpoint
from infrastructure.security.breaker import BreakerOpen, CircuitBreaker, Unavailable
from infrastructure.storage.job_queue import Done, JobResult, Retry, Row
from order_service.payment.model import (
    NoResponse,
    Operation,
    ProviderCall,
    ProviderResponse,
    apply_response,
    event_of,
    first_call,
    follow_up_call,
    is_unfinished,
)
from order_service.payment.provider_client import ProviderClient
from order_service.payment.store import PaymentStore, changed_columns, operation_of

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


class PaymentAgents:
    """The handlers of `payments.requests` and of the rows that store them.

    `on_stored` is called after each commit, to wake the job queues.
    """

    def __init__(
        self, store: PaymentStore, provider: ProviderClient, breaker: CircuitBreaker, publish: Publish
    ) -> None:
        self.store = store
        self.provider = provider
        self.breaker = breaker
        self.publish = publish
        self.on_stored: Callable[[], None] = lambda: None

    async def on_payment_requests(self, batch: Sequence[ReceivedMessage[Request]]) -> None:
        """Store a batch of requests. It is acknowledged then, independent of the provider."""
        await self.store.store_requests([(received.message, received.event) for received in batch])
        failpoint("payment.stored")
        self.on_stored()

    async def on_permanent_failure(self, received: ReceivedMessage[Request], error: Exception) -> None:
        """Do nothing: an invalid request has no reply, only its dead letter."""

    async def execute_operation(self, row: Row, attempt: int) -> JobResult:
        """Call the provider for one operation."""
        before = operation_of(row)
        call = first_call(before, attempt)
        if call is None:
            return Done()
        try:
            with self.breaker.attempt():
                call, response = await self._call_provider(before, call)
        except BreakerOpen:
            return Retry()
        except Unavailable as error:
            after = apply_response(before, call, NoResponse(str(error)))
            return Retry(changed_columns(before, after))
        failpoint("payment.asked")
        after = apply_response(before, call, response)
        if after.state != "open":
            metrics.OUTCOMES.labels(f"payment_{after.state}", "").inc()
        columns = changed_columns(before, after)
        return Retry(columns) if is_unfinished(after) else Done(columns)

    async def _call_provider(self, operation: Operation, call: ProviderCall) -> tuple[ProviderCall, ProviderResponse]:
        """Call the provider until a response is conclusive. Return the last call and its response."""
        next_call: ProviderCall | None = call
        while next_call is not None:
            call, response = next_call, await self.provider.execute(operation, next_call)
            next_call = follow_up_call(operation, call, response)
        return call, response

    async def publish_outcome(self, row: Row, _: int) -> JobResult:
        """Publish the known outcome of one operation. A repeat is the same event under the same id."""
        operation = operation_of(row)
        event = event_of(operation)
        if event is None:
            return Done()
        name = event.TYPE.rpartition(".")[2]
        failpoint("payment.answered")
        envelope = Envelope.of(
            event,
            source="/payments",
            subject=operation.order_id,
            event_id=f"{operation.key}/{name}",
            request_id=row["requestid"],
            time=row["settled_at"] or row["doubted_at"],
            traceparent=child_traceparent(row["traceparent"]),
            exclude_none=False,
        )
        await self.publish(EVENTS, [envelope])
        failpoint("payment.told")
        return Done({"told": name})
