"""The former address of `qwenvl_edge.inputs.pictures`, for programs written for it."""

from qwenvl_edge.inputs.pictures import ChannelOrder, Picture, load_picture, pixel_values

__all__ = ["ChannelOrder", "Picture", "load_picture", "pixel_values"]
