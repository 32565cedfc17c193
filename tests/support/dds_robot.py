"""A robot's nodes on DDS, as a program of its own: it knows nothing of this project, and encodes by Cyclone DDS itself.

python dds_robot.py DOMAIN camera TOPIC WIDTH HEIGHT SHADE   publishes pictures, twenty a second, until it is ended
python dds_robot.py DOMAIN ask TOPIC WORDS                   publishes a question until it is ended
python dds_robot.py DOMAIN echo TOPIC TYPE                   prints messages as JSON: String or Detection2DArray
python dds_robot.py DOMAIN set NODE NAME VALUE               sets a parameter as rmw_cyclonedds's clients do
python dds_robot.py DOMAIN get NODE NAME [LATE_S]            prints a parameter's value, heard by a reader made later
python dds_robot.py DOMAIN graph NODE COUNT                  prints the topics of a node's COUNT readers and writers
"""

import json
import sys
import time
from dataclasses import asdict, dataclass

from cyclonedds.builtin import (
    BuiltinDataReader,
    BuiltinTopicDcpsParticipant,
    BuiltinTopicDcpsPublication,
    BuiltinTopicDcpsSubscription,
)
from cyclonedds.core import Policy, Qos, ReadCondition, WaitSet
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import array, float64, int32, int64, sequence, uint8, uint32, uint64
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic


@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec_: int32
    nanosec_: uint32


@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp_: Time
    frame_id_: str


@dataclass
class Image(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    header_: Header
    height_: uint32
    width_: uint32
    encoding_: str
    is_bigendian_: uint8
    step_: uint32
    data_: sequence[uint8]


@dataclass
class String(IdlStruct, typename="std_msgs::msg::dds_::String_"):
    data_: str


@dataclass
class Point(IdlStruct, typename="geometry_msgs::msg::dds_::Point_"):
    x_: float64
    y_: float64
    z_: float64


@dataclass
class Quaternion(IdlStruct, typename="geometry_msgs::msg::dds_::Quaternion_"):
    x_: float64
    y_: float64
    z_: float64
    w_: float64


@dataclass
class Pose(IdlStruct, typename="geometry_msgs::msg::dds_::Pose_"):
    position_: Point
    orientation_: Quaternion


@dataclass
class PoseWithCovariance(IdlStruct, typename="geometry_msgs::msg::dds_::PoseWithCovariance_"):
    pose_: Pose
    covariance_: array[float64, 36]


@dataclass
class ObjectHypothesis(IdlStruct, typename="vision_msgs::msg::dds_::ObjectHypothesis_"):
    class_id_: str
    score_: float64


@dataclass
class ObjectHypothesisWithPose(IdlStruct, typename="vision_msgs::msg::dds_::ObjectHypothesisWithPose_"):
    hypothesis_: ObjectHypothesis
    pose_: PoseWithCovariance


@dataclass
class Point2D(IdlStruct, typename="vision_msgs::msg::dds_::Point2D_"):
    x_: float64
    y_: float64


@dataclass
class Pose2D(IdlStruct, typename="vision_msgs::msg::dds_::Pose2D_"):
    position_: Point2D
    theta_: float64


@dataclass
class BoundingBox2D(IdlStruct, typename="vision_msgs::msg::dds_::BoundingBox2D_"):
    center_: Pose2D
    size_x_: float64
    size_y_: float64


@dataclass
class Detection2D(IdlStruct, typename="vision_msgs::msg::dds_::Detection2D_"):
    header_: Header
    results_: sequence[ObjectHypothesisWithPose]
    bbox_: BoundingBox2D
    id_: str


@dataclass
class Detection2DArray(IdlStruct, typename="vision_msgs::msg::dds_::Detection2DArray_"):
    header_: Header
    detections_: sequence[Detection2D]


@dataclass
class ParameterValue(IdlStruct, typename="rcl_interfaces::msg::dds_::ParameterValue_"):
    type_: uint8
    bool_value_: bool
    integer_value_: int64
    double_value_: float64
    string_value_: str
    byte_array_value_: sequence[uint8]
    bool_array_value_: sequence[bool]
    integer_array_value_: sequence[int64]
    double_array_value_: sequence[float64]
    string_array_value_: sequence[str]


@dataclass
class Parameter(IdlStruct, typename="rcl_interfaces::msg::dds_::Parameter_"):
    name_: str
    value_: ParameterValue


@dataclass
class SetParametersResult(IdlStruct, typename="rcl_interfaces::msg::dds_::SetParametersResult_"):
    successful_: bool
    reason_: str


@dataclass
class SetRequest(IdlStruct, typename="rcl_interfaces::srv::dds_::SetParameters_Request_"):
    client_: uint64
    number_: int64
    parameters_: sequence[Parameter]


@dataclass
class SetResponse(IdlStruct, typename="rcl_interfaces::srv::dds_::SetParameters_Response_"):
    client_: uint64
    number_: int64
    results_: sequence[SetParametersResult]


@dataclass
class GetRequest(IdlStruct, typename="rcl_interfaces::srv::dds_::GetParameters_Request_"):
    client_: uint64
    number_: int64
    names_: sequence[str]


@dataclass
class GetResponse(IdlStruct, typename="rcl_interfaces::srv::dds_::GetParameters_Response_"):
    client_: uint64
    number_: int64
    values_: sequence[ParameterValue]


@dataclass
class Gid(IdlStruct, typename="rmw_dds_common::msg::dds_::Gid_"):
    data_: array[uint8, 16]


@dataclass
class NodeEntitiesInfo(IdlStruct, typename="rmw_dds_common::msg::dds_::NodeEntitiesInfo_"):
    node_namespace_: str
    node_name_: str
    reader_gid_seq_: sequence[Gid]
    writer_gid_seq_: sequence[Gid]


@dataclass
class ParticipantEntitiesInfo(IdlStruct, typename="rmw_dds_common::msg::dds_::ParticipantEntitiesInfo_"):
    gid_: Gid
    node_entities_info_seq_: sequence[NodeEntitiesInfo]


CDR = Policy.DataRepresentation(use_cdrv0_representation=True)
SENSOR = Qos(Policy.Reliability.BestEffort, Policy.History.KeepLast(1), CDR)
RELIABLE = Qos(Policy.Reliability.Reliable(100_000_000), Policy.History.KeepLast(10), CDR)
LATCHED = RELIABLE + Qos(Policy.Durability.TransientLocal)


def camera(participant, topic, width, height, shade):
    """Publish pictures whose blue channel is the shade, with stamps of now."""
    writer = DataWriter(participant, Topic(participant, f"rt/{topic}", Image), qos=SENSOR)
    pixels = bytes([int(shade), 0, 0]) * (int(width) * int(height))
    message = Image(Header(Time(0, 0), f"{topic}_frame"), int(height), int(width), "bgr8", 0, 3 * int(width), pixels)
    while True:
        message.header_.stamp_ = Time(*divmod(time.time_ns(), 10**9))
        writer.write(message)
        time.sleep(0.05)


def ask(participant, topic, words):
    """Publish a question, again and again: a subscriber may come later."""
    writer = DataWriter(participant, Topic(participant, f"rt/{topic}", String), qos=RELIABLE)
    while True:
        writer.write(String(words))
        time.sleep(0.2)


def echo(participant, topic, kind):
    """Print what comes, and the user data of who sends it."""
    reader = DataReader(participant, Topic(participant, f"rt/{topic}", globals()[kind]), qos=LATCHED)
    waiting = WaitSet(participant)
    condition = ReadCondition(reader, 0)
    waiting.attach(condition)
    while True:
        for message in reader.take(10):
            senders = [reader.get_matched_publication_data(each) for each in reader.get_matched_publications()]
            hashes = [each.qos[Policy.Userdata].data.decode() for each in senders]
            sys.stdout.write(f"{json.dumps({'message': asdict(message), 'hashes': hashes})}\n")
            sys.stdout.flush()
        time.sleep(0.02)


def parameter(name, value):
    """A string or a number as ROS's parameters have them."""
    numbers = {str: 4, float: 3, int: 2}
    whole, real = (value if isinstance(value, kind) else kind() for kind in (int, float))
    words = value if isinstance(value, str) else ""
    return Parameter(name, ParameterValue(numbers[type(value)], False, whole, real, words, [], [], [], [], []))


def call(participant, service, request, reply_kind, late_s=0.0):
    """Ask a service until it answers this client's request; prints the response as JSON.

    Discovery may tell the service of the writer before the reader: with late_s it does, by so many seconds.
    """
    requests = Topic(participant, f"rq/{service}Request", type(request))
    replies = Topic(participant, f"rr/{service}Reply", reply_kind)
    writer = DataWriter(participant, requests, qos=RELIABLE)
    reader = None if late_s else DataReader(participant, replies, qos=RELIABLE)
    while not writer.get_matched_subscriptions() or (reader and not reader.get_matched_publications()):
        time.sleep(0.02)
    writer.write(request)
    if reader is None:
        time.sleep(late_s)
        reader = DataReader(participant, replies, qos=RELIABLE)
    while True:
        for reply in reader.take(10):
            if (reply.client_, reply.number_) == (request.client_, request.number_):
                sys.stdout.write(f"{json.dumps(asdict(reply))}\n")
                return
        time.sleep(0.02)


def set_(participant, node, name, value):
    """Set a parameter; `value` is JSON."""
    request = SetRequest(2**63 + 5, 7, [parameter(name, json.loads(value))])
    call(participant, f"{node}/set_parameters", request, SetResponse)


def get(participant, node, name, late_s="0"):
    """Get a parameter."""
    call(participant, f"{node}/get_parameters", GetRequest(2**62 + 3, 9, [name]), GetResponse, float(late_s))


def graph(participant, node, count):
    """As `ros2 node info` does: what the node says is its own, and what DDS has found of that."""
    topic = Topic(participant, "ros_discovery_info", ParticipantEntitiesInfo)
    reader = DataReader(participant, topic, qos=Qos(Policy.History.KeepLast(1), CDR) + LATCHED)
    told = {"participants": {}, "publications": {}, "subscriptions": {}, "nodes": {}}
    ends = {"publications": BuiltinTopicDcpsPublication, "subscriptions": BuiltinTopicDcpsSubscription}
    ends = {name: BuiltinDataReader(participant, kind) for name, kind in ends.items()}
    people = BuiltinDataReader(participant, BuiltinTopicDcpsParticipant)
    while True:
        for each in people.take(100):
            data = each.qos[Policy.Userdata] if each.qos and Policy.Userdata in each.qos else None
            told["participants"][each.key.bytes] = data.data.decode() if data else ""
        for name, found in ends.items():
            told[name] |= {each.key.bytes: each.topic_name for each in found.take(100) if hasattr(each, "topic_name")}
        for message in reader.take(10):
            for each in message.node_entities_info_seq_:
                told["nodes"][f"{each.node_namespace_.rstrip('/')}/{each.node_name_}"] = message.gid_, each
        if node in told["nodes"]:
            gid, info = told["nodes"][node]
            readers = [told["subscriptions"].get(bytes(each.data_)) for each in info.reader_gid_seq_]
            writers = [told["publications"].get(bytes(each.data_)) for each in info.writer_gid_seq_]
            enclave = told["participants"].get(bytes(gid.data_))
            if enclave and len(readers) + len(writers) == int(count) and None not in readers + writers:
                found = {"enclave": enclave, "readers": sorted(readers), "writers": sorted(writers)}
                sys.stdout.write(f"{json.dumps(found)}\n")
                return
        time.sleep(0.02)


if __name__ == "__main__":
    domain, what, *rest = sys.argv[1:]
    {"camera": camera, "ask": ask, "echo": echo, "set": set_, "get": get, "graph": graph}[what](
        DomainParticipant(int(domain)), *rest
    )
