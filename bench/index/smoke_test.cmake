# Runs bench_index on small streams: the budget metrics appear, and streams that went through a file give the
# same answers. Called with BENCH (the program) and DIRECTORY (for the file).
set(common --scale 0.01 --quick --json)
set(file ${DIRECTORY}/smoke_stream.bin)

# run(OUTPUT arguments...): standard output of bench_index; stops the test when it fails.
function(run output)
  execute_process(COMMAND ${BENCH} ${ARGN} OUTPUT_VARIABLE text ERROR_VARIABLE error RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "bench_index ${ARGN}: ${result}\n${text}${error}")
  endif()
  set(${output} "${text}" PARENT_SCOPE)
endfunction()

function(checksum_of text output)
  if(NOT text MATCHES "\"match_checksum\",\"value\":([0-9]+)")
    message(FATAL_ERROR "no match_checksum in:\n${text}")
  endif()
  set(${output} ${CMAKE_MATCH_1} PARENT_SCOPE)
endfunction()

run(generated --profile pinned ${common})
foreach(metric timer_overhead_ns write_blocks_per_s bytes_per_holder_block match_d78_h64_cold_p99_ns
        match_single_p50_ns match_miss_p50_ns snapshot_s restore_s)
  if(NOT generated MATCHES "\"metric\":\"${metric}\",\"value\":[0-9]")
    message(FATAL_ERROR "no ${metric} in:\n${generated}")
  endif()
endforeach()

run(ignored --profile pinned --scale 0.01 --dump ${file})
run(loaded --load ${file} ${common})
checksum_of("${generated}" expected)
checksum_of("${loaded}" found)
if(NOT expected EQUAL found)
  message(FATAL_ERROR "checksum ${expected} as generated, ${found} from the file")
endif()

run(other_seed --profile pinned --seed 2 ${common})
checksum_of("${other_seed}" other)
if(other EQUAL expected)
  message(FATAL_ERROR "another seed gives the same checksum ${other}")
endif()

run(mixed --profile mixed ${common} --repeat 1 --threads 2)
if(NOT mixed MATCHES "\"case\":\"mixed\",\"metric\":\"reads_per_s\"")
  message(FATAL_ERROR "no reads_per_s in:\n${mixed}")
endif()

# A cut file is refused.
file(READ ${file} bytes LIMIT 2000 HEX)
file(WRITE ${file} "${bytes}")
execute_process(COMMAND ${BENCH} --load ${file} RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE error)
if(result EQUAL 0 OR NOT error MATCHES "magic")
  message(FATAL_ERROR "a damaged file: ${result} ${error}")
endif()
file(REMOVE ${file})
