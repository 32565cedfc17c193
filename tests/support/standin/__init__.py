"""A stand-in for CUDA and TensorRT on machines without a GPU: the part of their Python APIs that the backends use.

machine.py        the GPU: memory, streams whose work waits until somebody synchronises, captured graphs
cuda_runtime.py   cuda.bindings.runtime
nvrtc.py          cuda.bindings.nvrtc: kernels become a library for the CPU (simt.hpp of the plugin's tests)
cuda_driver.py    cuda.bindings.driver: runs such a library on the machine's memory, with a guard after each allocation
tensorrt_api.py   tensorrt; an engine runs its ONNX graph with ONNX Runtime on the bound addresses
                  tensorrt_types.py, tensorrt_context.py, tensorrt_refit.py: parts of it
plans.py          plans for it, from a bundle

An error of the documentation is returned as that error; behaviour that it leaves undefined raises
UndefinedBehaviorError.
"""
