"""The process of one contender: reads requests (lines of JSON) from its standard input and answers them.

  open     opens the device
  prepare  {case, graph}: gets ready to run the case, and checks the output
  replay   {count}: times that many replays, after one that is not counted
  finish   checks the output once more and gives the memory back
  matmul   the rate of a large matrix product

Started by peers.py. A session, from a module and function given by --session, does the work; it calls stage(NAME)
before each step and returns a dictionary, which is the reply.
"""

import argparse
import ctypes
import importlib
import importlib.util
import json
import os
import pathlib
import signal
import sys
import traceback


def die_with_parent():
    """Whoever is left with a kernel that never ends must not outlive the run."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def load(session):
    module, function = session.rsplit(":", 1)
    if not module.endswith(".py"):
        return getattr(importlib.import_module(module), function)
    spec = importlib.util.spec_from_file_location(pathlib.Path(module).stem, module)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return getattr(made, function)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the contender")
    parser.add_argument("--session", required=True, help="MODULE:FUNCTION or FILE.py:FUNCTION")
    parser.add_argument("--options", default="{}", help="JSON for the session")
    parser.add_argument("--replies", type=int, required=True, help="file descriptor")
    args = parser.parse_args()
    die_with_parent()
    requests = os.fdopen(os.dup(0), "r")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)

    def send(message):
        os.write(args.replies, (json.dumps(message) + "\n").encode())

    def stage(name):
        print(f"-- {name}", flush=True)
        send({"stage": name})

    number = 0  # the start is a request as well
    try:
        stage("import")
        session = load(args.session)(args.name, json.loads(args.options), stage)
        send({"reply": number})
        for line in requests:
            request = json.loads(line)
            print(f"== {line[:300].rstrip()}", flush=True)
            number = request.pop("id")
            reply = getattr(session, request.pop("do"))(**request)
            send({"reply": number, **reply})
    except Exception as error:  # the session could not make a reply of it: nothing of this process is trusted
        traceback.print_exc()
        send({"reply": number, "status": "fatal", "detail": f"{type(error).__name__}: {error}"[:300]})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
