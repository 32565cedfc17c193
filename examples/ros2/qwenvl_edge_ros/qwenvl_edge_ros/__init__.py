"""Nothing: the node is qwenvl_edge.robotics.ros2."""
