"""Leaving a consumer group under a static name, which aiokafka does not do.

A static member (KIP-345) that stops keeps its partitions until its session ends, so that it can come back to them.
Killed, it does come back sooner; asked to stop, it is away for as long as a start takes, and its shoppers wait. Since
version 3 the request to leave can name a static member: then the others take over at their next heartbeat.
"""

import asyncio
import logging
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int16, Int32, Schema, String

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 1.0
"""Leaving is a courtesy: without an answer by then, the session's end says it."""


class LeaveGroupResponse(Response):  # type: ignore[misc] # noqa: D101 - Kafka's protocol, api 13
    API_KEY = 13
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "members",
            Array(("member_id", String("utf-8")), ("group_instance_id", String("utf-8")), ("error_code", Int16)),
        ),
    )


class LeaveGroupRequest(RequestStruct):  # type: ignore[misc] # noqa: D101
    API_KEY = 13
    API_VERSION = 3
    RESPONSE_TYPE = LeaveGroupResponse
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("members", Array(("member_id", String("utf-8")), ("group_instance_id", String("utf-8")))),
    )


class LeaveGroup(Request[LeaveGroupRequest]):  # type: ignore[misc]
    """One static member leaves: nobody else who has come by its name meanwhile, as the id it joined under says."""

    API_KEY = 13

    def __init__(self, group: str, member_id: str, instance_id: str) -> None:
        self._group = group
        self._member = (member_id, instance_id)

    def build(self, request_struct_class: type[LeaveGroupRequest]) -> LeaveGroupRequest:
        """The request on the wire."""
        return request_struct_class(self._group, [self._member])


async def leave_group(consumer: AIOKafkaConsumer) -> None:
    """Let the others have the partitions now; call it when all is committed, before `consumer.stop()`. Never raises.

    Who has every partition is alone and stays a member: the successor takes its place without a rebalance.
    """
    coordinator: Any = consumer._coordinator  # noqa: SLF001 - aiokafka has no public way to its coordinator
    group, member, instance = coordinator.group_id, coordinator.member_id, coordinator._group_instance_id  # noqa: SLF001
    others = not _alone(consumer)
    try:
        await coordinator.close()  # its heartbeats, or it would join again
        if instance and member and others:
            request = LeaveGroup(group, member, instance)
            answer = await asyncio.wait_for(coordinator._send_req(request), PATIENCE_SECONDS)  # noqa: SLF001
            for code in (answer.error_code, *(each[-1] for each in answer.members)):
                if code:
                    raise for_code(code)
            log.info("left the group", extra={"group": group})
    except (KafkaError, OSError, TimeoutError, NotImplementedError) as error:
        log.warning("could not leave the group: %s: %s", type(error).__name__, error)


def _alone(consumer: AIOKafkaConsumer) -> bool:
    """Whether every partition of its topics is this consumer's own."""
    ours = consumer.assignment()
    numbers = {topic: consumer.partitions_for_topic(topic) or () for topic in consumer.subscription()}
    return all((topic, number) in ours for topic, each in numbers.items() for number in each)
