# What the example hosts need beyond the library: looked for once, with the reason when something is missing.
set(LLMD_HOSTS AUTO CACHE STRING "The gateway host and its companions: AUTO (when all they need is found), ON or OFF")
set_property(CACHE LLMD_HOSTS PROPERTY STRINGS AUTO ON OFF)

set(_missing)
if(LLMD_HOSTS STREQUAL "OFF")
  set(_why "switched off (LLMD_HOSTS=OFF)")
elseif(NOT TARGET llmd_gateway)
  set(_why "needs the component gateway")
else()
  find_package(gRPC CONFIG QUIET)
  find_package(spdlog CONFIG QUIET)
  find_package(prometheus-cpp CONFIG QUIET)
  find_package(cppzmq CONFIG QUIET)
  find_package(CURL QUIET)
  find_package(Boost 1.81 QUIET)
  find_package(CLI11 QUIET)
  find_package(nlohmann_json QUIET)
  foreach(_need
      gRPC_FOUND:gRPC:libgrpc++-dev spdlog_FOUND:spdlog:libspdlog-dev
      prometheus-cpp_FOUND:prometheus-cpp:prometheus-cpp-dev cppzmq_FOUND:cppzmq:cppzmq-dev
      CURL_FOUND:libcurl:libcurl4-openssl-dev "Boost_FOUND:Boost 1.81:libboost1.81-dev" CLI11_FOUND:CLI11:libcli11-dev
      nlohmann_json_FOUND:nlohmann-json:nlohmann-json3-dev)
    string(REPLACE ":" ";" _need "${_need}")
    list(GET _need 0 _found)
    if(NOT ${_found})
      list(GET _need 1 _name)
      list(GET _need 2 _package)
      list(APPEND _missing "${_name} (${_package})")
    endif()
  endforeach()
  if(_missing)
    list(JOIN _missing ", " _missing)
    set(_why "not found: ${_missing}")
    if(NOT LLMD_HOSTS STREQUAL "AUTO")
      message(FATAL_ERROR "LLMD_HOSTS=${LLMD_HOSTS}, but ${_why}")
    endif()
  endif()
endif()
if(_why)
  set_property(GLOBAL PROPERTY LLMD_WITHOUT_hosts "${_why}")
  return()
endif()
set(LLMD_HAVE_HOSTS ON)

# Asio's coroutines and Beast's parsers, compiled in no header that others include.
add_library(llmd_asio INTERFACE)
target_compile_definitions(llmd_asio INTERFACE BOOST_ASIO_NO_DEPRECATED BOOST_ASIO_SEPARATE_COMPILATION
  BOOST_BEAST_SEPARATE_COMPILATION)
# GCC does not see that Asio's coroutine frames have their own operators.
target_compile_options(llmd_asio INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-mismatched-new-delete>)
target_link_libraries(llmd_asio INTERFACE Boost::headers Threads::Threads)
