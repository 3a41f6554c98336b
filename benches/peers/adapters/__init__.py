"""One module a peer, each with a class `Peer`; its head says which settings it uses and where they are documented."""
