"""ros2 launch qwenvl_edge_ros vlm.launch.py bundle:=/path/to/bundle image:=/camera/image_raw."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    "bundle": ("", str, "the folder that `qwenvl export` wrote"),
    "prompt": ("", str, "asked about every image; if empty, only questions are answered"),
    "max_rate_hz": ("1.0", float, "the most times per second that the prompt is asked; 0 is no limit"),
    "max_age_ms": ("500.0", float, "no answers about images older than this; 0 accepts any age"),
    "max_new_tokens": ("64", int, "longest answer"),
    "autostart": ("true", bool, "whether the node configures and activates itself"),
    "compressed": ("false", bool, "whether `image` is a CompressedImage"),
}


def generate_launch_description() -> LaunchDescription:
    """One node, its image topic remapped."""
    parameters = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, (_, kind, _) in ARGUMENTS.items()
    }
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, _, text) in ARGUMENTS.items()
    ]
    node = Node(
        package="qwenvl_edge_ros",
        executable="vlm",
        name="qwenvl",
        output="screen",
        parameters=[parameters],
        remappings=[("image", LaunchConfiguration("image"))],
    )
    image = DeclareLaunchArgument("image", default_value="/camera/image_raw", description="the camera's topic")
    return LaunchDescription([*declared, image, node])
