"""The shell of payment: store what is wanted, ask the provider, tell what it said.

Three acts that wait for nothing but their own: the agent for Postgres, one pump for the provider, the other for Kafka.
Each begins where the one before it has stored something, so each may die anywhere and be done again.
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
    """What is done with `payments.requests`, and with the rows that they become.

    `stored` is called after each commit: whoever works on rows has something to look at.
    """

    def __init__(self, store: PaymentStore, provider: Provider, breaker: Breaker, publish: Publish) -> None:
        self.store = store
        self.provider = provider
        self.breaker = breaker
        self.publish = publish
        self.stored: Callable[[], None] = lambda: None

    async def handle(self, batch: Sequence[Received[Request]]) -> None:
        """Store what a batch wants; it is acknowledged then, whatever the provider does."""
        await self.store.accept([(received.message, received.event) for received in batch])
        crashpoint("payment.stored")
        self.stored()

    async def fail(self, received: Received[Request], error: Exception) -> None:
        """Nothing can be told of a request that makes no sense: the dead letters have it."""

    async def ask(self, row: Row, attempt: int) -> Verdict:
        """Ask the provider about one step."""
        before = step_of(row)
        question = next_ask(before, attempt)
        if question is None:
            return Done()
        try:
            with self.breaker.attempt():
                question, answer = await self._converse(before, question)
        except BreakerOpen:
            return Failed()
        except Unavailable as error:
            after = conclude(before, question, NoAnswer(str(error)))
            return Failed(changes(before, after))
        crashpoint("payment.asked")
        after = conclude(before, question, answer)
        if after.state != "open":
            metrics.OUTCOMES.labels(f"payment_{after.state}", "").inc()
        columns = changes(before, after)
        return Failed(columns) if is_asked_for(after) else Done(columns)

    async def _converse(self, step: Step, question: Ask) -> tuple[Ask, Answer]:
        """Ask, and after an answer that leaves it open ask on; the last question and its answer."""
        following: Ask | None = question
        while following is not None:
            question, answer = following, await self.provider.ask(step, following)
            following = ask_after(step, question, answer)
        return question, answer

    async def tell(self, row: Row, _: int) -> Verdict:
        """Tell orders what is known of one step; again and again the same, under the same id."""
        step = step_of(row)
        event = event_of(step)
        if event is None:
            return Done()
        name = event.TYPE.rpartition(".")[2]
        crashpoint("payment.answered")
        envelope = Envelope(
            id=f"{step.key}/{name}",
            source="/payments",
            type=event.TYPE,
            subject=step.order_id,
            time=row["settled_at"] or row["doubted_at"],
            traceparent=child(row["traceparent"]),
            requestid=row["requestid"],
            data=event.model_dump(mode="json"),
        )
        await self.publish(EVENTS, [envelope])
        crashpoint("payment.told")
        return Done({"told": name})
