# What the kernels are compiled for, as options of nvcc in ${everywhere}, and a part of it in ${sampled}.
#
# Without CMAKE_CUDA_ARCHITECTURES (or with OFF, which an earlier run leaves): machine code for everything from sm_80 on
# that the compiler knows, made of PTX for compute_80 or, where kernels may overlap, compute_90 (kernels/device.cuh); for
# what comes later the latter PTX. Half of a compilation is making PTX, so there are two and not one per architecture.
# Must be included before enable_language(CUDA).
if(CMAKE_CUDA_ARCHITECTURES)
  set(everywhere "")
  set(sampled "")
  message(STATUS "GPU architectures: ${CMAKE_CUDA_ARCHITECTURES}")
  return()
endif()
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)

# Adds to `result`: machine code for those of the architectures ARGN that the compiler knows, made of PTX for `virtual`.
function(generate_code result virtual)
  set(made "")
  foreach(architecture ${ARGN})
    if(known MATCHES "sm_${architecture}\n")
      list(APPEND made sm_${architecture})
    endif()
  endforeach()
  if(virtual EQUAL 90)
    list(APPEND made compute_90)
  endif()
  list(JOIN made "," made)
  set(${result} ${${result}} "--generate-code=arch=compute_${virtual},code=[${made}]" PARENT_SCOPE)
endfunction()

generate_code(everywhere 80 80 87 89)
generate_code(everywhere 90 90 100 110 120)
generate_code(sampled 80 87)
generate_code(sampled 90 90)
set(CMAKE_CUDA_ARCHITECTURES OFF)
message(STATUS "GPU architectures: ${everywhere}")
