"""ROS 2's wires without ROS: DDS and Zenoh."""
