"""torch's rendezvous without pickles from the network."""

import json
import pickle
from datetime import UTC, datetime
from typing import Any

from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import Token, _NodeDesc, _RendezvousState


class PlainBackend(C10dRendezvousBackend):
    """Keeps the state of the rendezvous in the store as JSON. torch's own backend sends pickles over the network."""

    def get_state(self) -> tuple[bytes, Token] | None:
        """See RendezvousBackend."""
        stored = super().get_state()
        return stored and (_to_pickle(stored[0]), stored[1])

    def set_state(self, state: bytes, token: Token | None = None) -> tuple[bytes, Token, bool] | None:
        """See RendezvousBackend. state: a pickle that torch made in this process."""
        stored = super().set_state(_to_json(state), token)
        return stored and (_to_pickle(stored[0]), stored[1], stored[2])


def _to_json(pickled: bytes) -> bytes:
    state = pickle.loads(pickled)

    def fields(node: _NodeDesc) -> list[Any]:
        return [node.addr, node.pid, node.local_id]

    document = {
        "round": state.round,
        "complete": state.complete,
        "deadline": state.deadline and state.deadline.timestamp(),
        "closed": state.closed,
        "participants": [[fields(node), rank] for node, rank in state.participants.items()],
        "wait_list": [fields(node) for node in state.wait_list],
        "redundancy_list": [fields(node) for node in state.redundancy_list],
        "last_heartbeats": [[fields(node), time.timestamp()] for node, time in state.last_heartbeats.items()],
    }
    return json.dumps(document).encode()


def _to_pickle(content: bytes) -> bytes:
    document, state = json.loads(content), _RendezvousState()

    def node(fields: list[Any]) -> _NodeDesc:
        return _NodeDesc(str(fields[0]), int(fields[1]), int(fields[2]))

    def time(seconds: float) -> datetime:
        return datetime.fromtimestamp(seconds, UTC)

    state.round, state.complete, state.closed = document["round"], document["complete"], document["closed"]
    state.deadline = None if document["deadline"] is None else time(document["deadline"])
    state.participants = {node(fields): int(rank) for fields, rank in document["participants"]}
    state.wait_list = {node(fields) for fields in document["wait_list"]}
    state.redundancy_list = {node(fields) for fields in document["redundancy_list"]}
    state.last_heartbeats = {node(fields): time(seconds) for fields, seconds in document["last_heartbeats"]}
    return pickle.dumps(state)
