"""Pyro's wire protocol, version 502, as bytes in and events out.  Nothing here sees a socket or a clock."""

from objserver.wire.extension import CallContext, Extension, Promises
from objserver.wire.frames import Flag, Frame, FrameType, encode_frame
from objserver.wire.parser import FrameParser
from objserver.wire.probe import Probe
from objserver.wire.session import CallTable

__all__ = [
    "CallContext",
    "CallTable",
    "Extension",
    "Flag",
    "Frame",
    "FrameParser",
    "FrameType",
    "Probe",
    "Promises",
    "encode_frame",
]
