"""Places of pages that watch: how many a key may take, and who has to go."""

import pytest

from gateway.access.keys import Key, new_token
from gateway.http.client_gone import Client
from gateway.routes.ui.live import Streams, TooManyPages


class Reader(Client):
    """A client that reads, or has taken nothing for some seconds."""

    def __init__(self, stuck: float = 0.0) -> None:
        super().__init__({})
        self.seconds, self.ended = stuck, False

    def stuck(self) -> float:
        return self.seconds

    def cut_connection(self) -> None:
        self.ended = True


def made(name: str) -> Key:
    key_id, _, digest = new_token()
    return Key(id=key_id, name=name, digest=digest, created=0.0)


def test_one_key_takes_half() -> None:
    streams, alice, bob, carol = Streams(), made("alice"), made("bob"), made("carol")
    leave = [streams.claim_stream(4, alice, Reader()) for _ in range(2)]
    with pytest.raises(TooManyPages, match="alice has 2 dashboard pages open already.*live_streams: 4"):
        streams.claim_stream(4, alice, Reader())
    for _ in range(2):
        streams.claim_stream(4, bob, Reader())
    with pytest.raises(TooManyPages, match="4 dashboard pages watch already"):
        streams.claim_stream(4, carol, Reader())
    leave[0]()
    leave[0]()
    streams.claim_stream(4, carol, Reader())
    with pytest.raises(TooManyPages):
        streams.claim_stream(4, carol, Reader())


def test_without_keys_there_is_nobody_to_share_with() -> None:
    streams = Streams()
    for _ in range(3):
        streams.claim_stream(3, None, Reader())
    with pytest.raises(TooManyPages, match="3 dashboard pages"):
        streams.claim_stream(3, None, Reader())
    with pytest.raises(TooManyPages, match="turned off"):
        Streams().claim_stream(0, made("alice"), Reader())


def test_who_does_not_read_makes_room() -> None:
    streams, alice, bob = Streams(), made("alice"), made("bob")
    reads, slow, stuck = Reader(), Reader(4.0), Reader(60.0)
    leave = [streams.claim_stream(3, None, one) for one in (reads, slow, stuck)]
    streams.claim_stream(3, alice, Reader())
    assert (reads.ended, slow.ended, stuck.ended) == (False, False, True)
    leave[2]()
    streams.claim_stream(3, bob, Reader())
    assert slow.ended and not reads.ended
    with pytest.raises(TooManyPages):
        streams.claim_stream(3, made("carol"), Reader())
