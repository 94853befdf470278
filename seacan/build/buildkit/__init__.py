"""BuildKit's API: what ``docker buildx``, Compose and bake speak, over gRPC on a hijacked connection.

``wire`` and ``http2`` are the transport, ``rpc`` is gRPC on top of it in both roles, ``messages`` the words of the
services, ``session`` what a client offers to its build, ``control`` what the daemon offers to clients.
"""
