"""Record scripts of other people, run as they are beside our own: in a process each, one run at a time."""

from fastcifar.peers.peer import Peer, PeerRun

__all__ = ["Peer", "PeerRun"]
