"""torch's rendezvous, but for its pickles: nothing that comes over the network is unpickled."""

import json
import pickle
from datetime import UTC, datetime
from typing import Any

from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import Token, _NodeDesc, _RendezvousState


class PlainBackend(C10dRendezvousBackend):
    """Keeps the state of the rendezvous in the store as JSON: torch's own backend sends pickles over the network."""

    def get_state(self) -> tuple[bytes, Token] | None:
        """See RendezvousBackend."""
        found = super().get_state()
        return found and (_from_plain(found[0]), found[1])

    def set_state(self, state: bytes, token: Token | None = None) -> tuple[bytes, Token, bool] | None:
        """See RendezvousBackend. state: a pickle that torch has made in this process."""
        stored = super().set_state(_to_plain(state), token)
        return stored and (_from_plain(stored[0]), stored[1], stored[2])


def _to_plain(pickled: bytes) -> bytes:
    state = pickle.loads(pickled)

    def node(each: _NodeDesc) -> list[Any]:
        return [each.addr, each.pid, each.local_id]

    plain = {
        "round": state.round,
        "complete": state.complete,
        "deadline": state.deadline and state.deadline.timestamp(),
        "closed": state.closed,
        "participants": [[node(each), rank] for each, rank in state.participants.items()],
        "wait_list": [node(each) for each in state.wait_list],
        "redundancy_list": [node(each) for each in state.redundancy_list],
        "last_heartbeats": [[node(each), when.timestamp()] for each, when in state.last_heartbeats.items()],
    }
    return json.dumps(plain).encode()


def _from_plain(content: bytes) -> bytes:
    plain, state = json.loads(content), _RendezvousState()

    def node(each: list[Any]) -> _NodeDesc:
        return _NodeDesc(str(each[0]), int(each[1]), int(each[2]))

    def moment(seconds: float) -> datetime:
        return datetime.fromtimestamp(seconds, UTC)

    state.round, state.complete, state.closed = plain["round"], plain["complete"], plain["closed"]
    state.deadline = None if plain["deadline"] is None else moment(plain["deadline"])
    state.participants = {node(each): int(rank) for each, rank in plain["participants"]}
    state.wait_list = {node(each) for each in plain["wait_list"]}
    state.redundancy_list = {node(each) for each in plain["redundancy_list"]}
    state.last_heartbeats = {node(each): moment(seconds) for each, seconds in plain["last_heartbeats"]}
    return pickle.dumps(state)
