#!/usr/bin/env python3
"""Writes one of the Envoy configurations beside it, with other addresses: render.py e1.yaml --listen 18080 > mine.yaml

The files run as they are; their changeable lines carry marks, which this program knows.
"""
import argparse
import pathlib
import re


def endpoint(address):
    """One endpoint of a cluster from "HOST:PORT" or "HOST:PORT=WEIGHT"."""
    address, _, weight = address.partition("=")
    host, _, port = address.rpartition(":")
    weight = f", load_balancing_weight: {int(weight)}" if weight else ""
    return (f"{{endpoint: {{address: {{socket_address: {{address: \"{host or '127.0.0.1'}\", "
            f"port_value: {int(port)}}}}}}}{weight}}}")


def render(text, listen=None, admin=None, workers=(), pickers=(), failure_mode_allow=None, message_timeout=None,
           timeout=None, ring=None, maglev=None, tls=False, health_checks=False, follow_picker=False):
    """The text of a configuration, changed where an argument is given. Addresses are "HOST:PORT[=WEIGHT]"."""
    for name, wanted in (("tls", tls), ("health", health_checks), ("follow", follow_picker)):
        if wanted:
            text, count = re.subn(rf"^( *)#{name}: ", r"\1", text, flags=re.M)
            if not count:
                raise ValueError(f"this configuration knows no {name}")
    if follow_picker:
        text = re.sub(r"^.*# @ring\n", "", text, flags=re.M)
        if ring:
            text = re.sub(r"minimum_ring_size: \d+", f"minimum_ring_size: {int(ring)}", text)
    elif maglev:
        text = re.sub(r"lb_policy: RING_HASH", "lb_policy: MAGLEV", text)
        text = re.sub(r"ring_hash_lb_config: .*# @ring", f"maglev_lb_config: {{table_size: {int(maglev)}}}", text)
    elif ring:
        text = re.sub(r"minimum_ring_size: \d+", f"minimum_ring_size: {int(ring)}", text)
    for mark, port in (("listen", listen), ("admin", admin)):
        if port is not None:
            text = re.sub(rf"port_value: \d+(.*# @{mark})$", rf"port_value: {int(port)}\1", text, flags=re.M)
    for mark, value in (("failure_mode_allow", failure_mode_allow), ("message_timeout", message_timeout),
                        ("timeout", timeout)):
        if value is not None:
            value = str(value).lower() if isinstance(value, bool) else value
            text = re.sub(rf"{mark}: .*( # @{mark})$", rf"{mark}: {value}\1", text, flags=re.M)
    for mark, addresses in (("workers", workers), ("pickers", pickers)):
        if addresses:
            lines = "".join(f"        - {endpoint(address)}\n" for address in addresses)
            text = re.sub(rf"(# @{mark}\n)(?:        - .*\n)+", lambda match: match[1] + lines, text)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="e1.yaml, e2.yaml or e3.yaml")
    parser.add_argument("--listen", type=int, help="port for clients (8080)")
    parser.add_argument("--admin", type=int, help="port of the admin page (9901)")
    parser.add_argument("--worker", action="append", default=[], help="HOST:PORT[=WEIGHT], repeated (8001 to 8003)")
    parser.add_argument("--picker", action="append", default=[], help="HOST:PORT, repeated (127.0.0.1:9002)")
    parser.add_argument("--failure-mode-allow", choices=("true", "false"))
    parser.add_argument("--message-timeout", help="e3.yaml (30s)")
    parser.add_argument("--timeout", help="of a whole request, such as 60s (0s: none)")
    parser.add_argument("--ring", type=int, help="minimum ring size (4096)")
    parser.add_argument("--maglev", type=int, help="e3.yaml: Maglev with a table of this size")
    parser.add_argument("--tls", action="store_true", help="TLS towards the picker")
    parser.add_argument("--health-checks", action="store_true", help="ask pickers for their health")
    parser.add_argument("--follow-picker", action="store_true", help="e3.yaml: the picker's choice comes before the ring")
    options = vars(parser.parse_args())
    path = pathlib.Path(options.pop("file"))
    path = path if path.exists() else pathlib.Path(__file__).parent / path
    options["workers"], options["pickers"] = options.pop("worker"), options.pop("picker")
    print(render(path.read_text(), **options), end="")


if __name__ == "__main__":
    main()
