"""The four serializers of Pyro5, spoken as stock peers speak them.

The libraries carry plain data; an object travels as a dict that names its class in `__class__`.  Two
functions do that for all four: `Classes.lower` makes the dict, `Classes.raised` makes the object from it,
and both know a fixed set of classes and those that the user registered with Pyro5.  No class is ever looked
up by a name that came over the wire.  serpent has a registry of its own, but it is global to the process
and knows nothing of our references, so for serpent and marshal the value is lowered before it is dumped.
"""

from __future__ import annotations

import array
import ast
import datetime
import json
import marshal
import numbers
import struct
import threading
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Self

import ormsgpack
import serpent

from objserver import errors, pyro5, references
from objserver.codecs import budget, exceptions, marshalled
from objserver.codecs.base import Call, Payload, Substitute, call_of, cannot, proxy_reference, twin, where
from objserver.references import Location, Origin, Reference
from objserver.settings import Limits

__all__ = ["JsonCodec", "MarshalCodec", "MsgpackCodec", "SerpentCodec"]

_PARSING = threading.Lock()
PARSING_ATTEMPTS = 20
_PRIMITIVES = frozenset({str, int, float, bool, type(None), bytes, complex})
_PLAIN: tuple[Any, ...] = (str, int, float, complex, bytes, tuple, list, dict, set, frozenset)
_NOT_VALUES = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType)


def _uri(reference: Reference) -> dict[str, Any]:
    at = reference.location or Location()
    target: Any = set(reference.tags) if reference.protocol == "PYROMETA" else reference.object_id
    state = (reference.protocol, target, at.path or None, at.host or None, at.port if at.host else None)
    return {"__class__": "Pyro5.core.URI", "state": state}


def _reference(state: Any) -> Reference:
    protocol, target, path, host, port = state
    if isinstance(target, (set, frozenset, list, tuple)):
        target = ",".join(sorted(target))
    for part in (protocol, target, path or "", host or ""):
        if not isinstance(part, str):
            raise errors.SerializeError("the state of a Pyro5.core.URI came in an unknown form")
    location = f"@./u:{path}" if path else f"@{Location(host, int(port))}" if host else ""
    return Reference.parse(f"{protocol}:{target}{location}")


def _literal(node: ast.expr) -> Any:
    """The value of a syntax tree, as ast.literal_eval makes it; refuses sets that would take for ever."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        items = [_literal(item) for item in node.elts]
        if isinstance(node, ast.Set):
            return set(budget.spread(items))
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = budget.spread([_literal(key) for key in node.keys if key is not None])
        return dict(zip(keys, map(_literal, node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        number = _literal(node.operand)
        if type(number) in (int, float, complex):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
        real, imaginary = _literal(node.left), _literal(node.right)
        if type(real) in (int, float) and type(imaginary) is complex:
            return real + imaginary if isinstance(node.op, ast.Add) else real - imaginary
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not (node.args or node.keywords):
        if node.func.id != "set":
            raise ValueError(f"a call of {node.func.id}")
        return set()
    raise ValueError(f"malformed node {type(node).__name__} on line {node.lineno}")


class Classes:
    """Between objects and the class dicts that stand for them."""

    def __init__(self, substitute: Substitute | None, codec: str, origin: Origin | None) -> None:
        self._substitute = substitute
        self._codec = codec
        self._origin = origin
        self.arrive: Callable[[Reference], Any] | None = None
        """What a reference becomes, if not what `origin` says."""

    def special(self, value: Any) -> Any:
        """The form of a value that Pyro gives a meaning of its own, or None for other values."""
        if isinstance(value, Reference):
            return _uri(value)
        reference = proxy_reference(value)
        if reference is None and self._substitute is not None:
            reference = self._substitute(value)
        if reference is not None:
            state: tuple[Any, ...] = (str(reference), (), (), (), "hello", None)
            return {"__class__": "Pyro5.client.Proxy", "state": state}
        stock = pyro5.proxy_state(value)
        if stock is not None:
            return {"__class__": stock[0], "state": stock[1]}
        registered = pyro5.class_to_dict(value)
        if registered is not None:
            return registered
        if isinstance(value, BaseException):
            return {
                "__class__": exceptions.stock_name(value),
                "__exception__": True,
                "args": value.args,
                "attributes": exceptions.attributes_of(value),
            }
        if pyro5.is_blob(value):
            raise errors.SerializeError("a SerializedBlob must be the only argument of a call")
        if isinstance(value, pyro5.ExceptionWrapper):
            return {"__class__": "Pyro5.core._ExceptionWrapper", "exception": self.special(value.exception)}
        return None

    def as_dict(self, value: Any) -> Any:
        """An ordinary object as a dict of its attributes, the way stock Pyro5 does."""
        cls = type(value)
        name = f"{cls.__module__}.{cls.__name__}"
        state: Any = None
        if isinstance(value, _NOT_VALUES):
            raise errors.SerializeError(f"{value!r} is not a value that {self._codec} could send")
        if getattr(cls, "__getstate__", None) is not getattr(object, "__getstate__", None):
            state = value.__getstate__()
            if isinstance(state, dict):
                # serpent names the class here; Pyro5's other serializers send what __getstate__ says
                return {"__class__": name} | state if self._codec == "serpent" else state
            if self._codec == "serpent":
                return state
        if hasattr(value, "__dict__"):
            state = dict(vars(value))
        elif hasattr(cls, "__slots__"):
            slots = (cls.__slots__,) if isinstance(cls.__slots__, str) else cls.__slots__
            state = {slot: getattr(value, slot) for slot in slots}
        else:
            raise errors.SerializeError(
                f"{self._codec} cannot send a value of type {name}; give the class __getstate__,"
                " register it with Pyro5's register_class_to_dict, or send plain data"
            )
        if "_pyroDaemon" in state:
            state["_pyroDaemon"] = None  # a live daemon is not data
        return state | {"__class__": name}

    def lower(self, value: Any, leaf: Callable[[Any], Any]) -> Any:
        """A copy of `value` made of plain data only; `leaf` says what becomes of ordinary objects.

        `leaf` gives back the value itself where the library can write it.
        """
        kind = type(value)
        if kind in _PRIMITIVES:
            return value
        if kind in (list, tuple, set, frozenset):
            return kind(self.lower(item, leaf) for item in value)
        if kind is dict:
            return {self.lower(key, leaf): self.lower(item, leaf) for key, item in value.items()}
        lowered = self.special(value)
        if lowered is None:
            lowered = leaf(value)
            if lowered is value:
                return value
        return self.lower(lowered, leaf)

    def raised(self, value: Any, inner_first: bool = False) -> Any:
        """`value` with every class dict in it made an object.

        Stock serpent, marshal and json leave the inside of a class dict alone; msgpack, whose hook is called
        for inner dicts first, does not.  Converters that users registered rely on either.
        """
        kind = type(value)
        if kind in (list, tuple, set):
            return kind(self.raised(item, inner_first) for item in value)
        if kind is not dict:
            return value
        if "__class__" in value and not inner_first:
            return self._object(value)
        result = {key: self.raised(item, inner_first) for key, item in value.items()}
        return self._object(result) if "__class__" in value else result

    def _object(self, data: dict[Any, Any]) -> Any:
        name = data["__class__"]
        if isinstance(name, bytes):
            name = name.decode()
        if not isinstance(name, str):
            raise errors.SerializeError("the name in a __class__ dict is not a string")
        converter = pyro5.dict_to_class_converter(name)
        if converter is not None:
            return converter(name, data)
        if "__" in name:
            raise errors.SerializeError(f"refused to decode a class with '__' in its name: {name}")
        if self._codec == "serpent" and name == "float":
            return float(data["value"])
        if name in ("Pyro5.core.URI", "Pyro5.client.Proxy") and type(data["state"]) not in (list, tuple):
            raise errors.SerializeError(f"the state of a {name} came in an unknown form")
        if name == "Pyro5.core.URI":
            return _reference(data["state"])
        if name == "Pyro5.client.Proxy":
            reference = Reference.parse(data["state"][0])
            if self.arrive is not None:
                return self.arrive(reference)
            return references.arrived(reference, origin=self._origin)
        if name == "Pyro5.core._ExceptionWrapper":
            inner = data["exception"]
            return pyro5.ExceptionWrapper(self._object(inner) if isinstance(inner, dict) else inner)
        if data.get("__exception__") or (name.startswith("Pyro5.errors.") and exceptions.known(name)):
            return exceptions.rebuild(name, data["args"], data.get("attributes", {}))
        raise errors.SerializeError(f"unsupported serialized class: {name}")


class StockCodec:
    """What the four have in common: errors, limits, class dicts, and the tuple that is a call."""

    serializer_id = 0
    name = ""
    _inner_first = False

    def __init__(
        self, limits: Limits, substitute: Substitute | None = None, origin: Origin | None = None
    ) -> None:
        self._limits = limits
        self._classes = Classes(substitute, self.name, origin)

    def between(self, arrive: Callable[[Reference], Any]) -> Self:
        """The same, for what is said with one peer, whose references become what `arrive` says."""
        other = twin(self)
        other._classes = twin(self._classes)
        other._classes.arrive = arrive
        return other

    def _dump(self, value: Any) -> bytes:
        raise NotImplementedError

    def _load(self, payload: bytes) -> Any:
        raise NotImplementedError

    def _check(self, payload: bytes) -> int:
        """Refuse what is beyond the limits; about how many bytes of memory the value will take."""
        raise NotImplementedError

    def weigh(self, payload: Payload) -> int:
        return self._check(bytes(payload))

    def encode_call(
        self, object_id: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> bytes:
        return self._encode((object_id, method, args, kwargs or {}), [("args", args), ("kwargs", kwargs)])

    def decode_call(self, payload: Payload) -> Call:
        return call_of(self.decode(payload))

    def encode(self, value: Any) -> bytes:
        return self._encode(value, [("result", value)])

    def _encode(self, value: Any, roots: Sequence[tuple[str, Any]]) -> bytes:
        try:
            return self._dump(value)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            path, found = where(roots, self._problem_with)
            raise cannot("encode", self.name, found or problem, path) from None

    def _problem_with(self, value: Any) -> BaseException | None:
        try:
            self._dump(value)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            return problem
        return None

    def decode(self, payload: Payload) -> Any:
        try:
            data = bytes(payload)
            if len(data) > self._limits.nesting_max:
                self._check(data)
            value = self._load(data)
            return self._classes.raised(value, self._inner_first) if b"__class__" in data else value
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            raise cannot("decode", self.name, problem) from None


class SerpentCodec(StockCodec):
    """Python literals, Pyro5's default.  Bytes arrive as {'data': base64...} dicts, as in stock Pyro5."""

    serializer_id = 1
    name = "serpent"

    def _leaf(self, value: Any) -> Any:
        known = (*serpent._special_classes_registry, *serpent._translate_types, *serpent._bytes_types)
        if isinstance(value, known) or any(cls in serpent.Serializer.dispatch for cls in type(value).__mro__):
            return value
        return self._classes.as_dict(value)

    def _dump(self, value: Any) -> bytes:
        lowered = value if type(value) in _PRIMITIVES else self._classes.lower(value, self._leaf)
        written: bytes = serpent.dumps(lowered, module_in_classname=True)
        return written

    def _load(self, payload: bytes) -> Any:
        # Not serpent.loads: it switches the garbage collector of the whole process off and on.
        text = payload.decode("utf-8")
        if "\0" in text:
            raise errors.SerializeError("serpent data holds a 0-byte")
        for attempt in range(PARSING_ATTEMPTS):
            try:
                with _PARSING:
                    tree = ast.parse(text.lstrip(" \t"), mode="eval")
                return _literal(tree.body)
            except SystemError:
                # Some versions of CPython count the parser's depth for all threads together (gh-106905).
                # The lock keeps ours apart; other code in this process may still disturb it.
                if attempt == PARSING_ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _check(self, payload: bytes) -> int:
        return budget.check_serpent(payload, self._limits)


class MarshalCodec(StockCodec):
    """CPython's own format, for old clients only; read by our data-only reader."""

    serializer_id = 2
    name = "marshal"

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, uuid.UUID):
            return str(value)
        if isinstance(value, array.array):
            return value.tounicode() if value.typecode == "u" else value.tolist()
        if isinstance(value, (bytearray, type(...))):
            return value
        for base in _PLAIN:
            if isinstance(value, base):
                return base(value)
        return self._classes.as_dict(value)

    def _dump(self, value: Any) -> bytes:
        return marshal.dumps(self._classes.lower(value, self._leaf), 4)

    def _load(self, payload: bytes) -> Any:
        limits = self._limits
        return marshalled.loads(
            payload, nesting_max=limits.nesting_max, items_max=limits.decoded_size_max // budget.CONTAINER
        )

    def _check(self, payload: bytes) -> int:
        return len(payload) * budget.MARSHAL_BYTE  # the reader counts while it reads


class JsonCodec(StockCodec):
    """JSON: tuples become lists, sets too, keys become strings."""

    serializer_id = 3
    name = "json"

    def encode_call(
        self, object_id: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> bytes:
        return self.encode({"object": object_id, "method": method, "params": args, "kwargs": kwargs or {}})

    def decode_call(self, payload: Payload) -> Call:
        call = self.decode(payload)
        if type(call) is not dict or not call.keys() >= {"object", "method", "params", "kwargs"}:
            raise errors.SerializeError("a call in JSON is an object with object, method, params and kwargs")
        return call_of((call["object"], call["method"], call["params"], call["kwargs"]))

    def _default(self, value: Any) -> Any:
        special = self._classes.special(value)
        if special is not None:
            return special
        if isinstance(value, (set, frozenset)):
            return tuple(value)
        if isinstance(value, (uuid.UUID, Decimal)):
            return str(value)
        if isinstance(value, datetime.date):
            return value.isoformat()
        if isinstance(value, array.array):
            return value.tounicode() if value.typecode == "u" else value.tolist()
        return self._classes.as_dict(value)

    def _dump(self, value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=False, default=self._default).encode("utf-8")

    def _load(self, payload: bytes) -> Any:
        return json.loads(payload.decode("utf-8"))

    def _check(self, payload: bytes) -> int:
        return budget.check_json(payload, self._limits)


class MsgpackCodec(StockCodec):
    """MessagePack with Pyro5's four Ext types; numbers in them are in the machine's byte order, alas."""

    serializer_id = 4
    name = "msgpack"
    _inner_first = True

    _OPTIONS = (
        ormsgpack.OPT_NON_STR_KEYS
        | ormsgpack.OPT_PASSTHROUGH_BIG_INT
        | ormsgpack.OPT_PASSTHROUGH_DATETIME
        | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    )

    def _default(self, value: Any) -> Any:
        special = self._classes.special(value)
        if special is not None:
            return special
        if isinstance(value, (set, frozenset)):
            return tuple(value)
        if isinstance(value, tuple):
            return list(value)
        if isinstance(value, Decimal):
            return str(value)
        if isinstance(value, complex):
            return ormsgpack.Ext(0x30, struct.pack("dd", value.real, value.imag))
        if isinstance(value, datetime.datetime):
            if value.tzinfo:
                raise errors.SerializeError("msgpack cannot serialize datetime with timezone info")
            return ormsgpack.Ext(0x32, struct.pack("d", value.timestamp()))
        if isinstance(value, datetime.date):
            return ormsgpack.Ext(0x33, struct.pack("l", value.toordinal()))
        if isinstance(value, numbers.Number):
            return ormsgpack.Ext(0x31, str(value).encode("ascii"))
        if isinstance(value, array.array):
            return value.tounicode() if value.typecode == "u" else value.tolist()
        return self._classes.as_dict(value)

    def _ext(self, code: int, data: bytes) -> Any:
        if code == 0x30:
            return complex(*struct.unpack("dd", data))
        if code == 0x31:
            return int(data)
        if code == 0x32:
            return datetime.datetime.fromtimestamp(struct.unpack("d", data)[0])
        if code == 0x33:
            return datetime.date.fromordinal(struct.unpack("l", data)[0])
        raise errors.SerializeError(f"MessagePack Ext type {code} is unknown")

    def _kept(self, hook: Callable[..., Any], work: Callable[[Callable[..., Any]], Any]) -> Any:
        """Do `work` with `hook`, and raise what the hook raised: ormsgpack only says that it failed."""
        problems: list[BaseException] = []

        def keep(*given: Any) -> Any:
            try:
                return hook(*given)
            except BaseException as problem:
                problems.append(problem)
                raise

        try:
            return work(keep)
        except Exception:
            if problems:
                raise problems[0] from None
            raise

    def _dump(self, value: Any) -> bytes:
        written: bytes = self._kept(
            self._default, lambda hook: ormsgpack.packb(value, default=hook, option=self._OPTIONS)
        )
        return written

    def _load(self, payload: bytes) -> Any:
        keys = ormsgpack.OPT_NON_STR_KEYS
        return self._kept(self._ext, lambda hook: ormsgpack.unpackb(payload, ext_hook=hook, option=keys))

    def _check(self, payload: bytes) -> int:
        return budget.weigh_msgpack(payload, self._limits)
