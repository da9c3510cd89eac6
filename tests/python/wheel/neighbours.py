"""Imports llmd before, between and after packages that bring a C++ runtime of their own, and uses all of them in one process.

Usage: neighbours.py NAME...    in every order, a process each; names are modules, of grpc, zmq and torch
       neighbours.py --one ORDER...
"""

import importlib
import itertools
import subprocess
import sys

import smoke


def use_grpc() -> None:
    import concurrent.futures

    import grpc

    echo = grpc.method_handlers_generic_handler(
        "test.Echo", {"Call": grpc.unary_unary_rpc_method_handler(lambda request, context: request)})
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1), handlers=[echo])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        assert channel.unary_unary("/test.Echo/Call")(b"hello", timeout=30) == b"hello"
    server.stop(None).wait(30)


def use_zmq() -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as a, context.socket(zmq.PAIR) as b:
        a.bind("inproc://a")
        b.connect("inproc://a")
        b.send(b"hello")
        assert a.recv() == b"hello"


def use_torch() -> None:
    import torch

    assert float((torch.arange(64.0).reshape(8, 8) @ torch.eye(8)).sum()) == 2016
    assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).shape == (1, 2)


USES = {"llmd": smoke.use, "grpc": use_grpc, "zmq": use_zmq, "torch": use_torch}


def main() -> None:
    if sys.argv[1] == "--one":
        for name in sys.argv[2:]:
            importlib.import_module(name)
        for name in sys.argv[2:]:
            USES[name]()
        return
    orders = list(itertools.permutations(["llmd", *sys.argv[1:]]))
    for order in orders:
        done = subprocess.run([sys.executable, __file__, "--one", *order], timeout=300)
        if done.returncode != 0:
            sys.exit(f"importing {', '.join(order)} in this order fails with {done.returncode}")
    print(f"{', '.join(orders[0])}: all {len(orders)} orders of import work")


if __name__ == "__main__":
    main()
