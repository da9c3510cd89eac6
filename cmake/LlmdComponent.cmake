# llmd_add_component(NAME): adds src/NAME, which calls llmd_library(NAME ...).
function(llmd_add_component name)
  if(EXISTS ${PROJECT_SOURCE_DIR}/src/${name}/CMakeLists.txt)
    add_subdirectory(${PROJECT_SOURCE_DIR}/src/${name} ${PROJECT_BINARY_DIR}/src/${name})
  endif()
endfunction()

# llmd_library(NAME SOURCES a.cc ... [PUBLIC deps...] [PRIVATE deps...] [EXPORT set])
# Static or shared (BUILD_SHARED_LIBS) library llmd_NAME, alias llmd::NAME, installed and exported.
# A component with dependencies that the others do not have goes into an export set of its own, which llmdConfig.cmake
# reads only where they are found. A private dependency that is only headers is no concern of those who link an installed library: it is not exported.
function(llmd_library name)
  cmake_parse_arguments(ARG "" "EXPORT" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  if(NOT ARG_EXPORT)
    set(ARG_EXPORT llmdTargets)
  endif()
  set(private)
  foreach(dep ${ARG_PRIVATE})
    if(dep STREQUAL "xxHash::xxhash")
      set(dep $<BUILD_INTERFACE:${dep}>)
    endif()
    list(APPEND private ${dep})
  endforeach()
  add_library(llmd_${name} ${ARG_SOURCES})
  add_library(llmd::${name} ALIAS llmd_${name})
  set_target_properties(llmd_${name} PROPERTIES EXPORT_NAME ${name}
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
    INSTALL_RPATH $ORIGIN)  # our shared libraries find one another wherever they are installed
  target_include_directories(llmd_${name}
    PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
    PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_features(llmd_${name} PUBLIC cxx_std_20)
  target_link_libraries(llmd_${name} PUBLIC ${ARG_PUBLIC} PRIVATE ${private} $<BUILD_INTERFACE:llmd_flags>)
  install(TARGETS llmd_${name} EXPORT ${ARG_EXPORT})
  set_property(GLOBAL APPEND PROPERTY LLMD_COMPONENTS ${name})
endfunction()

# llmd_test(NAME SOURCES ... [DEPS ...]): a GoogleTest binary registered with CTest.
# Tests find the repository's data below LLMD_SOURCE_DIR and the golden vectors below LLMD_VECTORS_DIR.
function(llmd_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE LLMD_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
    LLMD_VECTORS_DIR="${PROJECT_SOURCE_DIR}/tests/golden")
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} llmd_flags nlohmann_json::nlohmann_json GTest::gmock GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name})
endfunction()

# llmd_bench(NAME SOURCES ... [DEPS ...]): a benchmark binary that prints one JSON object a line with --json.
function(llmd_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} llmd_flags)
endfunction()

# llmd_fuzzer(NAME SOURCES ... [DEPS ...]): a libFuzzer binary, built when LLMD_BUILD_FUZZERS is on.
function(llmd_fuzzer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  if(NOT LLMD_BUILD_FUZZERS)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzzers)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} llmd_flags)
  target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  if(NOT TARGET llmd_fuzzers)
    add_custom_target(llmd_fuzzers)
  endif()
  add_dependencies(llmd_fuzzers ${name})
endfunction()
