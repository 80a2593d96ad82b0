"""Pyro's wire protocol, version 502, as bytes in and events out.  Nothing here sees a socket or a clock."""

from objserver.wire.extension import CallContext, Extension
from objserver.wire.frames import Flag, Frame, FrameType, encode_frame
from objserver.wire.parser import FrameParser

__all__ = ["CallContext", "Extension", "Flag", "Frame", "FrameParser", "FrameType", "encode_frame"]
