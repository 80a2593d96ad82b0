from collections.abc import Mapping
from typing import Any

class Frame:
    type: int
    serializer_id: int
    flags: int
    sequence: int
    payload: Any
    annotations: Mapping[str, bytes]
    correlation: bytes
    def __init__(self, type: int, serializer_id: int, flags: int, sequence: int, payload: Any) -> None: ...

def configure(cls: type[Frame], no_annotations: Mapping[str, bytes], no_correlation: bytes) -> None: ...
def plain_frame(start: bytes, sequence: int, payload: bytes | bytearray | memoryview) -> bytes: ...
def plain_frames(data: bytes | bytearray | memoryview, size_max: int) -> tuple[list[Any], int]: ...
