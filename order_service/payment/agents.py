"""The Kafka shell of payment: store requests, call the provider, publish the outcomes.

Three independent stages each wait for one dependency: the agent for Postgres, one job queue for the provider, another
one for Kafka. Each stage starts from rows that the stage before it has stored, so it may crash anywhere and be retried.
"""

from collections.abc import Awaitable, Callable, Sequence

from infrastructure import metrics
from infrastructure.breaker import Breaker, BreakerOpen, Unavailable
from infrastructure.crashpoints import crashpoint
from infrastructure.envelope import Envelope
from infrastructure.guard import Received
from infrastructure.pump import Done, Failed, Row, Verdict
from infrastructure.topics import Topic
from infrastructure.trace import child
from order_service.payment.client import Provider
from order_service.payment.messages import EVENTS, Request
from order_service.payment.model import (
    Answer,
    Ask,
    NoAnswer,
    Step,
    ask_after,
    conclude,
    event_of,
    is_asked_for,
    next_ask,
)
from order_service.payment.store import PaymentStore, changes, step_of

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


class Payments:
    """The handlers of `payments.requests` and of the rows that store them.

    `stored` is called after each commit, to wake the job queues.
    """

    def __init__(self, store: PaymentStore, provider: Provider, breaker: Breaker, publish: Publish) -> None:
        self.store = store
        self.provider = provider
        self.breaker = breaker
        self.publish = publish
        self.stored: Callable[[], None] = lambda: None

    async def handle(self, batch: Sequence[Received[Request]]) -> None:
        """Store a batch of requests. It is acknowledged then, independent of the provider."""
        await self.store.accept([(received.message, received.event) for received in batch])
        crashpoint("payment.stored")
        self.stored()

    async def fail(self, received: Received[Request], error: Exception) -> None:
        """Do nothing: an invalid request has no reply, only its dead letter."""

    async def ask(self, row: Row, attempt: int) -> Verdict:
        """Call the provider for one operation."""
        before = step_of(row)
        call = next_ask(before, attempt)
        if call is None:
            return Done()
        try:
            with self.breaker.attempt():
                call, response = await self._call_provider(before, call)
        except BreakerOpen:
            return Failed()
        except Unavailable as error:
            after = conclude(before, call, NoAnswer(str(error)))
            return Failed(changes(before, after))
        crashpoint("payment.asked")
        after = conclude(before, call, response)
        if after.state != "open":
            metrics.OUTCOMES.labels(f"payment_{after.state}", "").inc()
        columns = changes(before, after)
        return Failed(columns) if is_asked_for(after) else Done(columns)

    async def _call_provider(self, operation: Step, call: Ask) -> tuple[Ask, Answer]:
        """Call the provider until a response is conclusive. Return the last call and its response."""
        next_call: Ask | None = call
        while next_call is not None:
            call, response = next_call, await self.provider.ask(operation, next_call)
            next_call = ask_after(operation, call, response)
        return call, response

    async def tell(self, row: Row, _: int) -> Verdict:
        """Publish the known outcome of one operation. A repeat is the same event under the same id."""
        operation = step_of(row)
        event = event_of(operation)
        if event is None:
            return Done()
        name = event.TYPE.rpartition(".")[2]
        crashpoint("payment.answered")
        envelope = Envelope.of(
            event,
            source="/payments",
            subject=operation.order_id,
            event_id=f"{operation.key}/{name}",
            request_id=row["requestid"],
            time=row["settled_at"] or row["doubted_at"],
            traceparent=child(row["traceparent"]),
            exclude_none=False,
        )
        await self.publish(EVENTS, [envelope])
        crashpoint("payment.told")
        return Done({"told": name})
