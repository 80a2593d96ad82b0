import pytest

from objserver import errors
from objserver.codecs import Codecs
from objserver.settings import Limits


def test_codecs_are_found_by_id_and_name():
    codecs = Codecs(Limits())
    assert {codec.name: number for number, codec in codecs.by_id.items()} == {
        "objserver": 79,
        "serpent": 1,
        "json": 3,
        "msgpack": 4,
    }
    assert codecs.get(79) is codecs.native is codecs.by_name["objserver"]
    with pytest.raises(errors.SerializeError, match="switched off"):
        codecs.get(2)
    with pytest.raises(errors.SerializeError, match="serializer 9 is unknown"):
        codecs.get(9)
    assert Codecs(Limits(), marshal=True).get(2).name == "marshal"
