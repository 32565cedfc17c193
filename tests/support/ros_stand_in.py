"""What the node uses of ROS 2, small: messages with the published fields only, topics and actions without a middleware.

Field names and types follow sensor_msgs, std_msgs, diagnostic_msgs and vision_msgs 4; a wrong name raises.
"""

from __future__ import annotations

import threading
import types

from support.patience import PATIENCE_S


def message(kind, /, **fields):
    """A message class `kind`: `fields` gives each field's default, or a class to make one from."""

    def __init__(self, **given):  # noqa: N807
        for field, default in fields.items():
            value = default() if callable(default) else default
            setattr(self, field, given.pop(field, value))
        if given:
            raise AttributeError(f"{kind} has no field {', '.join(given)}")

    return type(kind, (), {"__slots__": tuple(fields), "__init__": __init__})


Time = message("Time", sec=0, nanosec=0)
Header = message("Header", stamp=Time, frame_id="")
Image = message("Image", header=Header, height=0, width=0, encoding="", is_bigendian=0, step=0, data=b"")
CompressedImage = message("CompressedImage", header=Header, format="", data=b"")
String = message("String", data="")
Point2D = message("Point2D", x=0.0, y=0.0)
Pose2D = message("Pose2D", position=Point2D, theta=0.0)
BoundingBox2D = message("BoundingBox2D", center=Pose2D, size_x=0.0, size_y=0.0)
ObjectHypothesis = message("ObjectHypothesis", class_id="", score=0.0)
ObjectHypothesisWithPose = message("ObjectHypothesisWithPose", hypothesis=ObjectHypothesis, pose=object)
Detection2D = message("Detection2D", header=Header, results=list, bbox=BoundingBox2D, id="")
Detection2DArray = message("Detection2DArray", header=Header, detections=list)
KeyValue = message("KeyValue", key="", value="")
DiagnosticArray = message("DiagnosticArray", header=Header, status=list)
DiagnosticStatus = message("DiagnosticStatus", level=b"\0", name="", message="", hardware_id="", values=list)
SetParametersResult = message("SetParametersResult", successful=False, reason="")
STATUS_LEVELS = types.SimpleNamespace(OK=b"\0", WARN=b"\1")


class Ask:
    Goal = message("Goal", prompt="")
    Result = message("Result", text="", finish_reason="", detections=Detection2DArray)
    Feedback = message("Feedback", piece="")


class Publisher:
    def __init__(self, kind):
        self.kind, self.messages, self.came = kind, [], threading.Semaphore(0)

    def publish(self, message):
        assert isinstance(message, self.kind)
        self.messages.append(message)
        self.came.release()

    def wait(self):
        """The next message."""
        assert self.came.acquire(timeout=PATIENCE_S)
        return self.messages[-1]


class Node:
    """An rclpy node whose time stands at `now_ns`; the test calls `send` and `fire`."""

    now_ns = 100 * 10**9

    def __init__(self, **parameters):
        self.parameters, self.published, self.subscribed, self.timers, self.warnings = parameters, {}, {}, [], []
        self.destroyed, self.state, self.managed, self.errors = False, "unconfigured", None, []

    def create_publisher(self, kind, topic, qos):
        return self.published.setdefault(topic, Publisher(kind))

    def create_subscription(self, kind, topic, callback, qos):
        self.subscribed[topic] = kind, callback, qos
        return topic

    def create_timer(self, period_s, callback):
        self.timers.append(callback)
        return callback

    def destroy_publisher(self, publisher):
        self.published = {topic: each for topic, each in self.published.items() if each is not publisher}

    def destroy_subscription(self, topic):
        del self.subscribed[topic]

    def destroy_timer(self, callback):
        self.timers.remove(callback)

    def declare_parameter(self, name, default):
        value = self.parameters.setdefault(name, default)
        assert type(value) is type(default)

    def get_parameter(self, name):
        return types.SimpleNamespace(value=self.parameters[name])

    def add_on_set_parameters_callback(self, callback):
        self.on_set = callback

    def set_parameters(self, **values):
        """As `ros2 param set`: all together; returns the result."""
        result = self.on_set([types.SimpleNamespace(name=name, value=value) for name, value in values.items()])
        assert isinstance(result, SetParametersResult)
        if result.successful:
            self.parameters.update(values)
        return result

    def add_managed_entity(self, entity):
        assert isinstance(entity, ManagedEntity)
        self.managed = entity

    def trigger_configure(self):
        return self._go("unconfigured", "on_configure", "inactive")

    def trigger_activate(self):
        return self._go("inactive", "on_activate", "active")

    def trigger_deactivate(self):
        return self._go("active", "on_deactivate", "inactive")

    def trigger_cleanup(self):
        return self._go("inactive", "on_cleanup", "unconfigured")

    def _go(self, before, callback, after):
        """A transition: one that fails stays in the state before."""
        assert self.state == before
        result = getattr(self.managed, callback)(types.SimpleNamespace(label=before))
        assert result in (SUCCESS, FAILURE)
        self.state = after if result == SUCCESS else before
        return result

    def get_clock(self):
        seconds, rest = divmod(self.now_ns, 10**9)
        now = types.SimpleNamespace(nanoseconds=self.now_ns, to_msg=lambda: Time(sec=seconds, nanosec=rest))
        return types.SimpleNamespace(now=lambda: now)

    def get_logger(self):
        return types.SimpleNamespace(warning=self.warnings.append, error=self.errors.append)

    def get_name(self):
        return "qwenvl"

    def destroy_node(self):
        self.destroyed = True

    def send(self, topic, message):
        kind, callback, _ = self.subscribed[topic]
        assert isinstance(message, kind)
        callback(message)


class Goal:
    """A goal on the server's side; `cancel_after` pieces of feedback its client asks to cancel."""

    def __init__(self, prompt, cancel_after=None):
        self.request = Ask.Goal(prompt=prompt)
        self.pieces, self.ended, self._cancel_after = [], None, cancel_after

    @property
    def is_cancel_requested(self):
        return self._cancel_after is not None and len(self.pieces) >= self._cancel_after

    def publish_feedback(self, feedback):
        assert isinstance(feedback, Ask.Feedback)
        self.pieces.append(feedback.piece)

    def succeed(self):
        self.ended = "succeeded"

    def canceled(self):
        assert self.is_cancel_requested
        self.ended = "canceled"

    def abort(self):
        self.ended = "aborted"


class ActionServer:
    def __init__(self, node, kind, name, *, execute_callback, cancel_callback, callback_group):
        assert kind is Ask
        node.action, node.cancel_callback = execute_callback, cancel_callback
        self._node = node

    def destroy(self):
        self._node.action = None


SUCCESS, FAILURE = "success", "failure"


class ManagedEntity:
    """What a managed node hands its transitions to."""


def modules(node, spin):
    """The modules to put into sys.modules; rclpy.lifecycle.LifecycleNode returns `node`, rclpy.spin calls `spin`."""
    status = type("DiagnosticStatus", (DiagnosticStatus,), {"__slots__": (), **vars(STATUS_LEVELS)})
    contents = {
        "rclpy": {
            "init": lambda args=None: None,
            "spin": lambda node, executor: spin(),
            "try_shutdown": lambda: None,
        },
        "rclpy.action": {"ActionServer": ActionServer, "CancelResponse": types.SimpleNamespace(ACCEPT=2)},
        "rclpy.callback_groups": {"ReentrantCallbackGroup": object},
        "rclpy.executors": {
            "MultiThreadedExecutor": object,
            "ExternalShutdownException": type("ExternalShutdownException", (Exception,), {}),
        },
        "rclpy.lifecycle": {
            "LifecycleNode": lambda name: node,
            "ManagedEntity": ManagedEntity,
            "TransitionCallbackReturn": types.SimpleNamespace(SUCCESS=SUCCESS, FAILURE=FAILURE),
        },
        "rclpy.qos": {
            "QoSProfile": types.SimpleNamespace,
            "ReliabilityPolicy": types.SimpleNamespace(BEST_EFFORT="best effort"),
        },
        "sensor_msgs.msg": {"Image": Image, "CompressedImage": CompressedImage},
        "std_msgs.msg": {"String": String},
        "rcl_interfaces.msg": {"SetParametersResult": SetParametersResult},
        "diagnostic_msgs.msg": {
            "DiagnosticArray": DiagnosticArray,
            "DiagnosticStatus": status,
            "KeyValue": KeyValue,
        },
        "vision_msgs.msg": {
            "Detection2D": Detection2D,
            "Detection2DArray": Detection2DArray,
            "ObjectHypothesisWithPose": ObjectHypothesisWithPose,
        },
        "qwenvl_edge_interfaces.action": {"Ask": Ask},
    }
    parents = {name.partition(".")[0]: {} for name in contents}
    made = {}
    for name, attributes in {**parents, **contents}.items():
        made[name] = types.ModuleType(name)
        vars(made[name]).update(attributes)
    return made
