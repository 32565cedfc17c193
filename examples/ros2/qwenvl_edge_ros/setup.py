"""Installs the launch file and the executable `vlm`, whose code is in the Python package qwenvl_edge."""

from setuptools import setup

NAME = "qwenvl_edge_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/vlm.launch.py"]),
    ],
    install_requires=["setuptools"],
    entry_points={"console_scripts": ["vlm = qwenvl_edge.robotics.ros2:main"]},
)
