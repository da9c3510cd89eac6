get_property(_components GLOBAL PROPERTY LLMD_COMPONENTS)
list(JOIN _components " " _components)
message(STATUS "llmd ${PROJECT_VERSION} (${CMAKE_BUILD_TYPE})")
message(STATUS "  components: ${_components}")
