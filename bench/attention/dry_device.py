"""For `peers.py --dry-run`: lets packages that ask PyTorch for the device believe in a Hopper, so that their own code
runs on CPU tensors until it reaches CUDA itself."""

import types

import torch


def pretend_hopper():
    properties = types.SimpleNamespace(name="pretended", major=9, minor=0, multi_processor_count=132,
                                       total_memory=80 << 30, warp_size=32, max_threads_per_multi_processor=2048)
    plain_empty = torch.empty
    torch.empty = lambda *args, pin_memory=False, **kwargs: plain_empty(*args, **kwargs)
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_device_name = lambda *_: properties.name
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: 1
    torch.cuda.synchronize = lambda *_: None


def pretend_triton_driver():
    """Triton compiles, and launches nothing."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Launcher:
        def __init__(self, *_):
            pass

        def __call__(self, *_):
            pass

    class Driver:
        launcher_cls = Launcher
        utils = types.SimpleNamespace(
            get_device_properties=lambda _: {"max_shared_mem": 232448, "multiprocessor_count": 132,
                                             "max_num_regs": 65536, "warpSize": 32},
            load_binary=lambda *_: (0, 0, 0, 0, 1024))

        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, _=None):
            return 0

        def get_active_torch_device(self):
            return torch.device("cpu")

        def get_device_interface(self):
            return torch.cuda

        def map_python_to_cpp_type(self, name):
            return name

    driver.set_active(Driver())
