"""The codecs room: every serializer, behind one shape, found by the id that a message carries.

Two objserver processes talk `native`; a stock Pyro5 peer talks one of its four.  All of them refuse, before
they decode, what would cost more than `Limits` allow, and none of them ever executes what it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from objserver import errors
from objserver.codecs.base import Codec, Substitute, twin
from objserver.codecs.native import NativeCodec, PartsCodec
from objserver.codecs.stock import JsonCodec, MarshalCodec, MsgpackCodec, SerpentCodec, StockCodec
from objserver.codecs.types import Types
from objserver.references import Origin, Reference
from objserver.settings import Limits

__all__ = ["Codec", "Codecs", "NativeCodec", "SerpentCodec", "Substitute", "Types"]


class Codecs:
    """The codecs of a server or a proxy, and the classes it knows; marshal only where it is switched on.

    `substitute` says which objects travel as references; `export` says it in its stead to our own peers, and
    `arrive` what a reference of theirs becomes.  `origin` is for those that stock peers send.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        substitute: Substitute | None = None,
        export: Substitute | None = None,
        arrive: Callable[[Reference], Any] | None = None,
        origin: Origin | None = None,
        marshal: bool = False,
        types: Types | None = None,
    ) -> None:
        self.types = Types() if types is None else types
        self.native = NativeCodec(limits, substitute, export, arrive, self.types)
        self.parts = PartsCodec(limits, substitute, export, arrive, self.types)
        """As `native`, towards peers: found by no id, since a connection has to know what it means."""
        self.serpent: Codec = SerpentCodec(limits, substitute, origin)
        codecs: list[Codec] = [
            self.native,
            self.serpent,
            JsonCodec(limits, substitute, origin),
            MsgpackCodec(limits, substitute, origin),
        ]
        if marshal:
            codecs.append(MarshalCodec(limits, substitute, origin))
        self.by_id: dict[int, Codec] = {codec.serializer_id: codec for codec in codecs}
        self.by_name: dict[str, Codec] = {codec.name: codec for codec in codecs}

    def between(
        self,
        *,
        arrive: Callable[..., Any],
        arrive_stock: Callable[[Reference], Any],
        export: Substitute | None = None,
        marks: bool = False,
    ) -> Codecs:
        """The same, for what is said with one peer; see `NativeCodec.between`."""
        other = twin(self)
        other.native = self.native.between(arrive=arrive, export=export, marks=marks)
        other.parts = self.parts.between(arrive=arrive, export=export, marks=marks)
        other.by_id = {
            codec.serializer_id: codec.between(arrive_stock)
            if isinstance(codec, StockCodec)
            else other.native
            for codec in self.by_id.values()
        }
        other.serpent = other.by_id[self.serpent.serializer_id]
        return other

    def get(self, serializer_id: int) -> Codec:
        """The codec of that id, or SerializeError."""
        codec = self.by_id.get(serializer_id)
        if codec is not None:
            return codec
        if serializer_id == MarshalCodec.serializer_id:
            raise errors.SerializeError("the marshal serializer is switched off here; use another serializer")
        raise errors.SerializeError(f"serializer {serializer_id} is unknown; known are {sorted(self.by_id)}")
