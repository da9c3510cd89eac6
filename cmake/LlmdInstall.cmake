# Installation: headers, libraries, find_package(llmd) and one pkg-config module per component (llmd-core, llmd-index, ...).
include(CMakePackageConfigHelpers)

set(_absent)
if(NOT TARGET llmd_gateway)
  set(_absent PATTERN gateway EXCLUDE)
endif()
install(DIRECTORY include/llmd DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h" ${_absent})
set(_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/llmd)
install(EXPORT llmdTargets NAMESPACE llmd:: DESTINATION ${_cmake_dir})
if(TARGET llmd_gateway)
  install(EXPORT llmdGatewayTargets NAMESPACE llmd:: DESTINATION ${_cmake_dir})
endif()
set(LLMD_STATIC ON)
if(BUILD_SHARED_LIBS)
  set(LLMD_STATIC OFF)
endif()
configure_package_config_file(cmake/llmdConfig.cmake.in ${PROJECT_BINARY_DIR}/llmdConfig.cmake
  INSTALL_DESTINATION ${_cmake_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/llmdConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/llmdConfig.cmake ${PROJECT_BINARY_DIR}/llmdConfigVersion.cmake
  DESTINATION ${_cmake_dir})

# Sets `modules` and `flags` to what pkg-config calls the CMake targets in ARGN; our build-only dependencies are left out.
function(_llmd_pkgconfig_names modules flags)
  set(names)
  set(words)
  foreach(dep ${ARGN})
    if(dep MATCHES "^llmd::(.+)$")
      list(APPEND names llmd-${CMAKE_MATCH_1})
    elseif(dep MATCHES "^absl::(.+)$")
      list(APPEND names absl_${CMAKE_MATCH_1})
    elseif(dep STREQUAL "yaml-cpp")
      list(APPEND names yaml-cpp)
    elseif(dep STREQUAL "OpenSSL::Crypto")
      list(APPEND names libcrypto)
    elseif(dep STREQUAL "protobuf::libprotobuf")
      list(APPEND names protobuf)
    elseif(dep STREQUAL "simdjson::simdjson")
      list(APPEND names simdjson)
    elseif(dep STREQUAL "Threads::Threads")
      list(APPEND words -pthread)
    elseif(NOT dep MATCHES "^\\$<(BUILD_INTERFACE|LINK_ONLY):")
      message(FATAL_ERROR "cmake/LlmdInstall.cmake does not know the pkg-config name of ${dep}")
    endif()
  endforeach()
  list(JOIN names " " names)
  list(JOIN words " " words)
  set(${modules} "${names}" PARENT_SCOPE)
  set(${flags} "${words}" PARENT_SCOPE)
endfunction()

# Writes and installs llmd-NAME.pc. A static library needs its private dependencies at link time as well, so plain
# `pkg-config --libs` names them; `--static` changes nothing. Paths follow the file, so a tree may be moved.
function(_llmd_install_pkgconfig name)
  file(RELATIVE_PATH to_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
  string(REGEX REPLACE "/$" "" to_prefix ${to_prefix})
  get_target_property(type llmd_${name} TYPE)
  set(library)
  if(NOT type STREQUAL "INTERFACE_LIBRARY")
    set(library "-lllmd_${name}")
  endif()
  if(type STREQUAL "STATIC_LIBRARY")
    get_target_property(deps llmd_${name} LINK_LIBRARIES)
  else()
    get_target_property(deps llmd_${name} INTERFACE_LINK_LIBRARIES)
  endif()
  if(NOT deps)  # a property that is not set
    set(deps)
  endif()
  _llmd_pkgconfig_names(requires flags ${deps})
  set(cflags)
  get_target_property(folder llmd_${name} LLMD_PKGCONFIG_INCLUDES)
  if(folder)
    set(cflags " -I\${includedir}/${folder}")
  endif()
  file(CONFIGURE OUTPUT llmd-${name}.pc @ONLY CONTENT [[prefix=${pcfiledir}/@to_prefix@
libdir=${pcfiledir}/..
includedir=${prefix}/@CMAKE_INSTALL_INCLUDEDIR@

Name: llmd-@name@
Description: @PROJECT_DESCRIPTION@ (@name@)
Version: @PROJECT_VERSION@
Requires: @requires@
Cflags: -I${includedir}@cflags@
Libs: -L${libdir} @library@ @flags@
]])
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/llmd-${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()

get_property(_components GLOBAL PROPERTY LLMD_COMPONENTS)
foreach(_component ${_components} core)
  _llmd_install_pkgconfig(${_component})
endforeach()
