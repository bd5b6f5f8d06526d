"""LeaveGroup request for a static member of a consumer group, which aiokafka does not send.

A static member (KIP-345) keeps its partitions until its session ends, so that it can return to them. After a kill it
returns sooner than that. After an orderly stop its partitions would be unread for as long as a start takes, while its
users wait. Version 3 of the request can name a static member: then the other members take over at their next heartbeat.
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
"""Time to wait for the response. Without one, the other members take over when the session ends."""


class LeaveGroupResponse(Response):  # type: ignore[misc] # noqa: D101 - Kafka's protocol, API key 13
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
    """Request that one static member leaves. The member id excludes a successor that has joined under the same name."""

    API_KEY = 13

    def __init__(self, group: str, member_id: str, instance_id: str) -> None:
        self._group = group
        self._member = (member_id, instance_id)

    def build(self, request_struct_class: type[LeaveGroupRequest]) -> LeaveGroupRequest:
        """Return the request in the version that the broker supports."""
        return request_struct_class(self._group, [self._member])


async def leave_group(consumer: AIOKafkaConsumer) -> None:
    """Give the partitions to the other members now. Never raises.

    Call it after the last commit and before `consumer.stop()`. A consumer that has all partitions stays a member, since
    there is no other: its successor takes its place without a rebalance.
    """
    coordinator: Any = consumer._coordinator  # noqa: SLF001 - aiokafka has no public way to its coordinator
    group, member, instance = coordinator.group_id, coordinator.member_id, coordinator._group_instance_id  # noqa: SLF001
    others = not _owns_all_partitions(consumer)
    try:
        await coordinator.close()  # stops the heartbeats: otherwise it would join again
        if instance and member and others:
            request = LeaveGroup(group, member, instance)
            answer = await asyncio.wait_for(coordinator._send_req(request), PATIENCE_SECONDS)  # noqa: SLF001
            for code in (answer.error_code, *(each[-1] for each in answer.members)):
                if code:
                    raise for_code(code)
            log.info("left the group", extra={"group": group})
    except (KafkaError, OSError, TimeoutError, NotImplementedError) as error:
        log.warning("could not leave the group: %s: %s", type(error).__name__, error)


def _owns_all_partitions(consumer: AIOKafkaConsumer) -> bool:
    """Return whether all partitions of the subscribed topics are assigned to this consumer."""
    ours = consumer.assignment()
    numbers = {topic: consumer.partitions_for_topic(topic) or () for topic in consumer.subscription()}
    return all((topic, number) in ours for topic, each in numbers.items() for number in each)
