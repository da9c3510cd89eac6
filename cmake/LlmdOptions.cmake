# Build options, compiler flags and the sanitizer switch shared by every target.

option(LLMD_BUILD_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(LLMD_BUILD_EXAMPLES "Build the example hosts" ${PROJECT_IS_TOP_LEVEL})
option(LLMD_BUILD_BENCH "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(LLMD_BUILD_FUZZERS "Build the libFuzzer targets (clang only)" OFF)
option(LLMD_WERROR "Treat compiler warnings as errors" ${PROJECT_IS_TOP_LEVEL})
set(LLMD_GATEWAY AUTO CACHE STRING "The gateway component: AUTO (when Protobuf and simdjson are found), ON or OFF")
set_property(CACHE LLMD_GATEWAY PROPERTY STRINGS AUTO ON OFF)
set(_python OFF)
if(PROJECT_IS_TOP_LEVEL)
  set(_python AUTO)
endif()
set(LLMD_PYTHON ${_python} CACHE STRING "The Python module: AUTO (when Python and pybind11 are found), ON or OFF")
set_property(CACHE LLMD_PYTHON PROPERTY STRINGS AUTO ON OFF)
set(LLMD_SANITIZE "" CACHE STRING "Sanitizers to build with, e.g. address,undefined or thread")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_program(LLMD_CCACHE ccache)
if(LLMD_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${LLMD_CCACHE})
endif()

# Private flags of our own targets; consumers keep theirs.
add_library(llmd_flags INTERFACE)
target_compile_options(llmd_flags INTERFACE "$<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Wno-sign-compare>"
  # GCC 12 sees overlaps in std::string's operator+ that are not there.
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>
  $<$<AND:$<COMPILE_LANGUAGE:C,CXX>,$<BOOL:${LLMD_WERROR}>>:-Werror>)
if(LLMD_SANITIZE)
  target_compile_options(llmd_flags INTERFACE -fsanitize=${LLMD_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(llmd_flags INTERFACE -fsanitize=${LLMD_SANITIZE})
  if(LLMD_SANITIZE MATCHES "thread")
    # GCC warns that TSan ignores fences; we use none whose omission hides a race.
    target_compile_options(llmd_flags INTERFACE -Wno-error=tsan)
  endif()
endif()
