"""Tables of states, and the enums that they are made of."""

from __future__ import annotations

import copy
import pickle

import pytest

from elemta.fast_enum import FastEnum
from elemta.state_table import state_table


class Light(FastEnum):
    RED = "red"
    GREEN = "green"


class Press(FastEnum):
    GO = "go"
    STOP = "stop"


def test_a_change_leads_where_the_table_says_and_nowhere_else() -> None:
    after = state_table({(Light.RED, Press.GO): Light.GREEN, (Light.GREEN, Press.STOP): Light.RED})
    found = {(light, press): after(light, press) for light in Light for press in Press}
    assert found == {
        (Light.RED, Press.GO): Light.GREEN,
        (Light.RED, Press.STOP): Light.RED,
        (Light.GREEN, Press.GO): Light.GREEN,
        (Light.GREEN, Press.STOP): Light.RED,
    }


@pytest.mark.parametrize("member", list(Light))
def test_a_member_is_hashed_as_an_object_wherever_it_comes_from(member: Light) -> None:
    assert hash(member) == object.__hash__(member)
    for same in (Light(member.value), Light[member.name], copy.deepcopy(member), _pickled(member)):
        assert {member: 1}[same] == 1


def _pickled(member: Light) -> Light:
    again: Light = pickle.loads(pickle.dumps(member))
    return again
