"""Every limit of objserver by name, with its default and the reason for it.

Two frozen values: `Limits` bounds what one message may cost (both sides of a connection apply it),
`ServerSettings` bounds a server.  Nothing reads a global; who needs a limit is handed the value.
"""

from __future__ import annotations

import dataclasses

__all__ = ["CLIENT_LIMITS", "Limits", "ServerSettings"]

KiB = 1024
MiB = 1024 * KiB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one message may cost.  Sizes in bytes, times in seconds."""

    frame_size_max: int = 16 * MiB
    """A whole frame after its header, and the payload after decompression: room for real data, while a
    thousand connections that each hold one stay within a server's memory."""
    handshake_size_max: int = 64 * KiB
    """The connect frame comes from someone not yet known, and holds an object id and a greeting."""
    annotations_max: int = 64
    """Chunks per frame.  Pyro5 uses two; 500,000 of them cost a stock server 0.4 s."""
    annotations_size_max: int = 1 * MiB
    """All chunks of a frame together: they are not compressed and not streamed."""
    nesting_max: int = 100
    """Levels of containers in one value: decoders recurse, and no data a person designed is deeper."""
    decoded_size_max: int = 256 * MiB
    """Estimated memory of the decoded value: a byte of MessagePack can become an 88-byte dict, two bytes
    of serpent a 1 KiB syntax node."""
    shared_buffer_size_max: int = 1024 * MiB
    """One array or bytes in memory shared with a process of the same machine: it is mapped, not received, so
    the limit of a frame does not apply; what has to be bounded is all of them together."""
    batch_size_max: int = 10_000
    """Calls in one batch; a stock server executes 200,000 from one frame without asking."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server allows.  Sizes in bytes, times in seconds."""

    limits: Limits = dataclasses.field(default_factory=Limits)
    workers_max: int = 34
    """Threads that run servants.  One makes the server iterative.  With the server's helpers the process
    stays below 40, however many connections there are, unless servants wait for other objects."""
    workers_blocked_max: int = 256
    """Threads beyond `workers_max` whose servants wait for answers of other objects.  Those may live in this
    server, and a worker must be left to run them; each waiting thread costs its stack.  Beyond it the
    servant's call gets ServerBusy."""
    connections_max: int = 10_000
    """Open connections; each costs a descriptor and a few kB, no thread."""
    handshake_timeout_s: float = 5.0
    """From accept to a complete connect frame."""
    frame_timeout_s: float = 30.0
    """From the first byte of a frame to its last."""
    receive_memory_max: int = 256 * MiB
    """Bytes over all connections: unfinished frames, large ones not yet decoded, and what the arguments over
    256 bytes of invocations that wait or run take in memory, estimated before they are decoded."""
    send_memory_max: int = 32 * MiB
    """Bytes that wait for one peer that does not read; beyond it the peer is disconnected."""
    shared_memory_max: int = 1024 * MiB
    """Bytes of memory lent to processes of the same machine, and likewise of theirs mapped here; 0 switches
    shared memory off.  Beyond the first, values go through the socket; beyond the second they are refused."""
    mailbox_size_max: int = 1_000
    """Invocations that wait for one servant; beyond it callers get ServerBusy."""
    deadlock_check_s: float = 0.01
    """How long a call made by a servant waits for a busy object before it asks whether that waits for it too.
    Most waits are over by then, and a deadlock is still reported within 50 ms."""
    node_lease_s: float = 3.0
    """How long a node of a cluster that is silent keeps its objects: so long they are not to be had when it
    dies, and so long it may pause without losing them.  It is renewed three times as often."""
    rebalanced_per_lease_max: int = 100
    """Objects that a node of a cluster gives to others in the time of a lease, when it has more of them than
    they: each makes its callers wait for a few milliseconds.  0: objects stay where they are."""
    stream_linger_s: float = 30.0
    """How long an item stream outlives the connection it was opened on (Pyro5's ITER_STREAM_LINGER)."""
    stream_lifetime_s: float = 0.0
    """How long an item stream lives at all; 0 is without end (Pyro5's ITER_STREAM_LIFETIME)."""
    streams_max: int = 1_000
    """Open item streams of a server."""
    streams_per_session_max: int = 100
    """... and of one client session, so that one does not take them all."""
    exports_max: int = 10_000
    """Objects served because a reference to them was returned, and held by their clients."""
    lease_s: float = 30.0
    """How long a client that is not heard of keeps such an object.  Clients renew three times as often, so it
    outlives two lost messages and a short break of the network."""
    session_lease_s: float = 3600.0
    """How long the store remembers what a client's calls to Persistent objects were answered, after it was
    last heard of: longer than anybody waits for a server to come back."""
    sessions_max: int = 100_000
    """Such clients at a time; each is a row in the store, and what is remembered here costs about 200
    bytes."""
    timers_per_object_max: int = 1_000
    """Timers that a Persistent object has set: they are all read when one of them fires."""
    calls_per_connection_max: int = 1_000
    """Calls in flight of one connection that carries many; our own clients send half of that."""
    callbacks_per_connection_max: int = 1_000
    """Calls to objects of one client that wait for their replies."""
    kept_results_max: int = 1_000
    """Results of one connection that are kept for requests which refer to them: as many as it may have calls
    in flight, since a client that has the result sends it itself."""
    kept_results_memory_max: int = 16 * MiB
    """... and the bytes of their replies; beyond either the oldest is forgotten."""
    active_objects_max: int = 100_000
    """Servants that are active or being made, over all policies; beyond it callers get ServerBusy."""
    unsent_memory_max: int = 256 * MiB
    """Bytes of replies that wait for all peers that do not read; who adds to it beyond is disconnected."""
    calls_per_principal_s: float = 0.0
    """Calls per second of one principal, where the server knows who calls, those it denies included; 0 is
    without limit: who shares the server, and how fast it is, only its owner knows."""
    bytes_per_principal_s: float = 0.0
    """... and bytes of its requests over 4 KiB (smaller ones are bounded by their number); 0 likewise."""
    activations_per_principal_s: float = 1_000.0
    """Persistent objects that calls of one principal make active per second: each may become a row in the
    store for ever.  Faster than a program walks through objects it works with; 0 is without limit."""
    quota_burst_s: float = 10.0
    """For how many seconds' worth a principal that was quiet may take at once: work comes in heaps."""
    connections_per_principal_max: int = 1_000
    """Open connections of one principal: threads share theirs, and ten programs gone mad leave the server
    to others."""
    drain_timeout_s: float = 10.0
    """How long stop() waits for invocations in progress."""
    marshal: bool = False
    """Accept the marshal serializer.  Only data is ever read from it, but it exists for old clients only."""
    tracebacks: bool = True
    """Send tracebacks with exceptions."""


CLIENT_LIMITS = Limits(frame_size_max=1 << 30)
"""A client trusts the server it chose more than a server its clients: Pyro5's own limit of 1 GiB."""
