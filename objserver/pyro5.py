"""The seam: the only module of objserver that imports the Pyro5 package.

Pyro5 is in maintenance, and its process-wide registries and thread-local context are things we want to honour
(a user's registered class keeps travelling) without spreading them through our rooms.  Everything
that the rest needs from it is named here, so the day Pyro5 goes, this is the one file to rewrite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from Pyro5.callcontext import current_context
from Pyro5.core import URI
from Pyro5.core import _ExceptionWrapper as ExceptionWrapper
from Pyro5.errors import (
    CommunicationError,
    ConnectionClosedError,
    DaemonError,
    MessageTooLargeError,
    NamingError,
    ProtocolError,
    PyroError,
    SecurityError,
    SerializeError,
    TimeoutError,
)
from Pyro5.serializers import SerializerBase

__all__ = [
    "URI",
    "CommunicationError",
    "ConnectionClosedError",
    "DaemonError",
    "ExceptionWrapper",
    "MessageTooLargeError",
    "NamingError",
    "ProtocolError",
    "PyroError",
    "SecurityError",
    "SerializeError",
    "TimeoutError",
    "blob_parts",
    "call_context",
    "class_to_dict",
    "dict_to_class_converter",
    "enter_call_context",
    "introduce",
    "is_blob",
    "leave_call_context",
    "proxy_state",
    "serialized_blob",
    "travels_as_uri",
]

# Pyro5 keeps these two private by name mangling; they are the registries its documented
# register_class_to_dict() and register_dict_to_class() fill.
_to_dict: Mapping[type, Callable[[Any], dict[str, Any]]] = (
    SerializerBase._SerializerBase__custom_class_to_dict_registry
)
_from_dict: Mapping[str, Callable[[str, dict[str, Any]], Any]] = (
    SerializerBase._SerializerBase__custom_dict_to_class_registry
)

call_context = current_context


def class_to_dict(value: object) -> dict[str, Any] | None:
    """The dict form that the user registered with Pyro5 for the class of `value`, or None."""
    for cls, converter in _to_dict.items():
        if isinstance(value, cls) and cls.__module__.partition(".")[0] != "Pyro5":
            return converter(value)
    return None


def dict_to_class_converter(class_name: str) -> Callable[[str, dict[str, Any]], Any] | None:
    """The function that the user registered with Pyro5 to rebuild `class_name` from its dict, or None."""
    return _from_dict.get(class_name)


def proxy_state(value: object) -> tuple[str, tuple[Any, ...]] | None:
    """(class name, state) of a stock Pyro5 URI or Proxy that is about to travel, or None for anything else.

    The class is compared by name so that `Pyro5.client` is not imported for it.
    """
    cls = type(value)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if name in ("Pyro5.core.URI", "Pyro5.client.Proxy"):
        return name, value.__getstate__()  # type: ignore[return-value]
    return None


def travels_as_uri(cls: type) -> None:
    """Let stock Pyro5 code in this process send instances of `cls`, whose str() is a URI, as its own URIs."""

    def to_dict(value: object) -> dict[str, Any]:
        return {"__class__": "Pyro5.core.URI", "state": URI(str(value)).__getstate__()}

    SerializerBase.register_class_to_dict(cls, to_dict)


def introduce(servant: Any, object_id: str, daemon: object) -> None:
    """Give a servant written for Pyro5 the attributes that a stock daemon gives it."""
    try:
        servant._pyroId, servant._pyroDaemon = object_id, daemon
    except AttributeError:
        pass  # it has slots; a stock daemon could not host it at all


def is_blob(value: object) -> bool:
    """Whether `value` is Pyro5's SerializedBlob, asked without importing Pyro5's client."""
    return type(value).__name__ == "SerializedBlob" and type(value).__module__ == "Pyro5.client"


def blob_parts(blob: Any) -> tuple[Any, Any, tuple[int, bytes] | None]:
    """The label of a SerializedBlob, its data, and (serializer id, payload) if it is still as it came."""
    if not blob._contains_blob:
        return blob.info, blob._data, None
    message = blob._data
    data = bytes(message.data)
    # A message about to be sent has its header before the payload, one that was received has not.
    payload = data if type(message).__name__ == "ReceivingMessage" else data[-message.data_size :]
    return blob.info, None, (message.serializer_id, payload)


def serialized_blob(info: object, message: object) -> object:
    """The `SerializedBlob` that a servant written for Pyro5 expects; `message` is handed out as it came."""
    from Pyro5 import protocol
    from Pyro5.client import SerializedBlob

    header_and_payload: Any = message
    received = protocol.ReceivingMessage(header_and_payload[0], header_and_payload[1])
    return SerializedBlob(info, received, is_blob=True)


def enter_call_context(values: Mapping[str, Any]) -> dict[str, Any]:
    """Show a call to code that reads `Pyro5.api.current_context` (client address, annotations, ids).

    Returns what `leave_call_context` takes: nobody else on this thread may see the call.
    """
    before = dict(current_context.__dict__)
    current_context.__dict__.update(values)
    return before


def leave_call_context(before: Mapping[str, Any]) -> None:
    """Show again what was there before."""
    current_context.__dict__.clear()
    current_context.__dict__.update(before)
