"""Routing: a request goes to the replica that was asked about its picture or clip before.

Rendezvous hashing: every replica has a weight for a picture, the heaviest is preferred. When replicas come and go, only
the pictures of those that came or went move, and several routers agree without talking to each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from qwenvl_edge.inputs.clips import Clip
from qwenvl_edge.inputs.pictures import Picture


def picture_key(arguments: Mapping[str, Any]) -> str:
    """Return the digest of a conversation's first picture or clip, with which its computed prefix begins; "" for none.

    Args:
        arguments: those of Batcher.submit, pictures and clips loaded.
    """
    turns = [items or () for items, _ in arguments["history"]]  # none where the assistant spoke first
    for items in (*turns, arguments["message"]):
        for item in items:
            if isinstance(shown := item.get("image", item.get("video")), (Picture, Clip)):
                return shown.digest
    return ""


def preferred(key: str, names: Iterable[str]) -> str:
    """Return the name that a key belongs to; it stays when others come or go."""
    return max(names, key=lambda name: hashlib.blake2b(f"{key} {name}".encode(), digest_size=8).digest())


class PictureRouter(RequestRouter):
    """Sends a request to the replica of its picture, to the least loaded other one when that is busy.

    A request is a call whose first argument is its key; with an empty key it goes to the least loaded replica.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return groups of replicas, preferred ones first; in a group Ray takes the one with the shortest queue."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # when all are busy, wait before they are asked again
        key = pending_request.args[0]
        if not key:
            return [candidate_replicas]
        names = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        first = names.pop(preferred(key, names))
        return [[first], list(names.values())]
