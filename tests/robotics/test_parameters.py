"""A node's ROS parameters without a wire: each service's response, and the event that tells of a change."""

import pytest

from qwenvl_edge import QwenVLError
from qwenvl_edge.robotics.node import NodeSettings
from qwenvl_edge.robotics.parameters import changed
from qwenvl_edge.robotics.ros_services import PARAMETER_SERVICES, request
from qwenvl_edge.robotics.wires.parameters import Parameters

pytest.importorskip("rosbags", reason="the extra replay is not installed")

from qwenvl_edge.robotics.ros_types import blank, deserialize, serialize, type_hash

# As ROS 2's own nodes have them since Iron.
HASHES = {
    "DescribeParameters": "845b484d71eb0673dae682f2e3ba3c4851a65a3dcfb97bddd82c5b57e91e4cff",
    "GetParameters": "bf9803d5c74cf989a5de3e0c2e99444599a627c7ff75f97b8c05b01003675cbc",
    "GetParameterTypes": "da199c878688b3e530bdfe3ca8f74cb9fa0c303101e980a9e8f260e25e1c80ca",
    "ListParameters": "3e6062bfbb27bfb8730d4cef2558221f51a11646d78e7bb30a1e83afac3aad9d",
    "SetParameters": "56eed9a67e169f9cb6c1f987bc88f868c14a8fc9f743a263bc734c154015d7e0",
    "SetParametersAtomically": "0e192ef259c07fc3c07a13191d27002222e65e00ccec653ca05e856f79285fcd",
}


@pytest.fixture
def asked():
    """Asks the services over CDR; `asked.settings` and `asked.events` are what the node was given."""

    def ask(service, **fields):
        message = blank(request(PARAMETER_SERVICES[service]))
        for name, value in fields.items():
            setattr(message, name, value)
        response = ask.parameters.answer(service, deserialize(serialize(message), message.__msgtype__))
        return deserialize(serialize(response), response.__msgtype__)

    ask.settings, ask.events = [], []
    begun = NodeSettings(prompt="What?", max_rate_hz=2.0)
    ask.parameters = Parameters("/qwenvl", begun, ask.settings.append, ask.events.append)
    return ask


def parameter(name, value):
    message = blank("rcl_interfaces/msg/Parameter")
    message.name = name
    kinds = {bool: (1, "bool_value"), int: (2, "integer_value"), float: (3, "double_value"), str: (4, "string_value")}
    message.value.type, field = kinds[type(value)]
    setattr(message.value, field, value)
    return message


@pytest.mark.parametrize("service", PARAMETER_SERVICES)
def test_type_hashes_are_those_of_the_distributions(service):
    assert type_hash(PARAMETER_SERVICES[service]) == f"RIHS01_{HASHES[service]}"


def test_listed_described_and_read(asked):
    names = ["prompt", "max_rate_hz", "max_age_ms", "max_new_tokens", "deadline_ms"]
    assert asked("ListParameters").result.names == names
    assert asked("ListParameters", prefixes=["prompt", "other"]).result.names == ["prompt"]
    described = asked("DescribeParameters", names=["max_new_tokens", "other"]).descriptors
    assert [(each.name, each.type) for each in described] == [("max_new_tokens", 2)] and described[0].description
    assert asked("GetParameterTypes", names=names).types.tolist() == [4, 3, 3, 2, 3]
    prompt, rate, age, *_ = asked("GetParameters", names=names).values
    assert (prompt.string_value, rate.double_value, age.double_value) == ("What?", 2.0, 0.0)


def test_a_change_is_told(asked):
    (result,) = asked("SetParameters", parameters=[parameter("max_age_ms", 300)]).results  # a whole number will do
    assert result.successful and asked.settings == [NodeSettings(prompt="What?", max_rate_hz=2.0, max_age_ms=300.0)]
    (event,) = asked.events
    (told,) = event.changed_parameters
    assert (event.node, told.name, told.value.type, told.value.double_value) == ("/qwenvl", "max_age_ms", 3, 300.0)
    asked("SetParameters", parameters=[parameter("prompt", "")])
    assert asked.settings[-1].prompt is None


def test_all_or_none(asked):
    pair = [parameter("prompt", "Where?"), parameter("deadline_ms", -1.0)]
    result = asked("SetParametersAtomically", parameters=pair).result
    assert not result.successful and "deadline_ms" in result.reason and asked.settings == asked.events == []
    first, second = asked("SetParameters", parameters=pair).results
    assert (first.successful, second.successful) == (True, False) and asked.settings[-1].prompt == "Where?"


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("bundle", "other", "there is no parameter 'bundle' that can change"),
        ("prompt", 3, "the parameter prompt is 3; give a value of the type str"),
        ("max_new_tokens", 2.5, "give a value of the type int"),
        ("max_new_tokens", True, "give a value of the type int"),
        ("prompt", "  ", "the prompt is empty"),
    ],
)
def test_bad_values_are_one_sentence(name, value, match):
    with pytest.raises(QwenVLError, match=match):
        changed(NodeSettings(), {name: value})
