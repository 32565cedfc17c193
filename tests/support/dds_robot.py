"""A robot's nodes on DDS, as a program of its own: it knows nothing of this project, and encodes by Cyclone DDS itself.

python dds_robot.py DOMAIN camera TOPIC WIDTH HEIGHT SHADE   publishes pictures, twenty a second, until it is ended
python dds_robot.py DOMAIN ask TOPIC WORDS                   publishes a question until it is ended
python dds_robot.py DOMAIN echo TOPIC TYPE                   prints messages as JSON: String or Detection2DArray
"""

import json
import sys
import time
from dataclasses import asdict, dataclass

from cyclonedds.core import Policy, Qos, ReadCondition, WaitSet
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import array, float64, int32, sequence, uint8, uint32
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


if __name__ == "__main__":
    domain, what, *rest = sys.argv[1:]
    {"camera": camera, "ask": ask, "echo": echo}[what](DomainParticipant(int(domain)), *rest)
