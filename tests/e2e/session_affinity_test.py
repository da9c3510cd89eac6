#!/usr/bin/env python3
"""Our ring hash, Maglev and session reading against a real Envoy: session_affinity_test.py --venv FOLDER --tool PROGRAM

Envoy tells in x-upstream-host which host it chose. For each cluster 10,000 random sessions must go where the tool says.
"""
import argparse
import base64
import json
import os
import pathlib
import random
import subprocess
import tempfile
import time

import envoy_rig as rig

SESSIONS = 10_000
LUA = """
local function cookie_of(text)
  for part in string.gmatch(text or "", "[^;]+") do
    local trimmed = string.gsub(part, "^%s+", "")
    local name, value = string.match(trimmed, "([^=]+)=([^=]+)")
    if name == "session-id" and value ~= nil then return value end
  end
end
function envoy_on_request(request)
  local headers = request:headers()
  local session = headers:get("x-session-id")
  if session ~= nil and session ~= "" then return end
  session = headers:get("session-id")
  if session == nil or session == "" then session = cookie_of(headers:get("cookie")) end
  if session ~= nil and session ~= "" then headers:add("x-session-id", session) end
end
"""


class Case:
    """A cluster and the same hosts for the tool."""

    def __init__(self, name, kind, size, hosts, locality_weights=(), dynamic=None, balance=0):
        self.balance = balance  # percent, 0 for no bound
        self.name, self.kind, self.size = name, kind, size
        self.hosts = hosts  # (port, weight, locality)
        self.locality_weights = locality_weights
        self.dynamic = dynamic  # path of a file that Envoy watches

    def assignment(self, hosts):
        localities = {}
        for port, weight, locality in hosts:
            localities.setdefault(locality, []).append(
                {"endpoint": {"address": rig.address(port)}, "load_balancing_weight": weight})
        endpoints = []
        for locality, members in sorted(localities.items()):
            entry = {"lb_endpoints": members}
            if self.locality_weights:
                entry["locality"] = {"region": f"region-{locality}"}
                entry["load_balancing_weight"] = self.locality_weights[locality]
            endpoints.append(entry)
        return {"cluster_name": self.name, "endpoints": endpoints}

    def write(self, hosts):
        resource = {"@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
                    **self.assignment(hosts)}
        temporary = self.dynamic.with_suffix(".new")
        temporary.write_text(json.dumps({"resources": [resource]}))
        os.replace(temporary, self.dynamic)

    def cluster(self):
        cluster = {"name": self.name, "connect_timeout": "5s"}
        if self.dynamic:
            self.write(self.hosts)
            cluster["type"] = "EDS"
            cluster["eds_cluster_config"] = {
                "eds_config": {"resource_api_version": "V3", "path_config_source": {"path": str(self.dynamic)}}}
        else:
            cluster["type"] = "STATIC"
            cluster["load_assignment"] = self.assignment(self.hosts)
        if self.kind == "maglev":
            cluster["lb_policy"] = "MAGLEV"
            cluster["maglev_lb_config"] = {"table_size": self.size}
        else:
            cluster["lb_policy"] = "RING_HASH"
            cluster["ring_hash_lb_config"] = {
                "minimum_ring_size": self.size,
                "hash_function": "MURMUR_HASH_2" if self.kind == "murmur" else "XX_HASH"}
        if self.balance:
            cluster["common_lb_config"] = {"consistent_hashing_lb_config": {"hash_balance_factor": self.balance}}
        if self.locality_weights:
            cluster["common_lb_config"] = {"locality_weighted_lb_config": {}}
        return cluster

    def picks(self, tool, values, hosts=None):
        arguments = [f"127.0.0.1:{port}={weight}@{locality}" for port, weight, locality in hosts or self.hosts]
        arguments += [f"locality={weight}" for weight in self.locality_weights]
        arguments += [f"balance={self.balance}"] if self.balance else []
        return ask(tool, [self.kind, str(self.size), *arguments], values)


def ask(tool, arguments, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    answer = subprocess.run([tool, *arguments], input=text, capture_output=True, text=True, check=True)
    return answer.stdout.splitlines()


def listener(port, cases, lua):
    filters = [{"name": "router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]
    if lua:
        filters.insert(0, {"name": "lua", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": LUA}}})
    routes = [{"match": {"path": f"/{case.name}"},
               "route": {"cluster": case.name, "hash_policy": [{"header": {"header_name": "x-session-id"}}]}}
              for case in cases]
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test", "http_filters": filters,
        "route_config": {"virtual_hosts": [{
            "name": "all", "domains": ["*"], "routes": routes,
            "response_headers_to_add": [{"header": {"key": "x-upstream-host", "value": "%UPSTREAM_HOST%"}}]}]}}
    return {"address": rig.address(port),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}


def random_session(source):
    if source.random() < 0.5:
        return f"{source.getrandbits(128):032x}"
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=,;@ \"'"
    return ("s" + "".join(source.choices(alphabet, k=source.randrange(80)))).strip()


def chosen(answers):
    bad = [answer for answer in answers if answer["status"] != 200]
    assert not bad, f"{len(bad)} requests failed, the first: {bad[0]}"
    return [answer["x-upstream-host"] for answer in answers]


def compare(name, ours, theirs, hosts):
    assert len(ours) == len(theirs) > 0
    different = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    assert not different, (f"{name}: {len(different)} of {len(ours)} differ, the first at {different[0]}: "
                           f"we pick {ours[different[0]]}, Envoy {theirs[different[0]]}")
    used = len(set(theirs))
    assert used >= hosts, f"{name}: Envoy used {used} of {hosts} hosts"
    print(f"{name}: {len(ours)} picks agree, {used} hosts", flush=True)


def check_bounded(port, tool, case, held, source):
    """Requests that all stay under way, one after the other: each must find the counts that those before it made."""
    sessions = [random_session(source) for _ in range(8)]
    values = [[source.choice(sessions)] for _ in range(240)]
    clients = []
    for i, value in enumerate(values):
        clients.append(rig.Client(port))
        clients[-1].send(f"/{case.name}", [("x-session-id", value[0]), ("x-hold", "1")])
        deadline = time.monotonic() + 20
        while held.value != i + 1:
            assert time.monotonic() < deadline, f"request {i} did not arrive"
            time.sleep(0.001)
    chosen(rig.Client(port).get(f"/{case.name}", [[("x-session-id", "x"), ("x-release", "1")]]))
    theirs = chosen([client.answer() for client in clients])
    compare(case.name, case.picks(tool, values), theirs, 4)
    assert max(map(theirs.count, theirs)) < 240 * 0.4, "Envoy did not bound the load"


def check_sessions(client, tool, case):
    """The session that we read is the one that the filter makes of the same headers."""
    cookies = ["session-id=abc", "a=1; session-id=abc; b=2", "session-id=", "session-id=;session-id=b",
               "session-id=a; session-id=b", "session-id=ab=cd", "session-id=YWI==", "session-id==x",
               "a=1;\t session-id=abc", "session-id=abc  ; b=2", "session-id= abc", "session-id =abc",
               'session-id="abc"', 'session-id="a;b"', 'a="; session-id=x"', "xsession-id=abc", "session_id=abc",
               "=session-id=abc", "a==session-id=abc", "a=session-id=abc", "==;=;session-id=x", "Session-Id=abc",
               "session-id=\u00e9"]
    requests = [[("cookie", cookie)] for cookie in cookies]
    requests += [
        [], [("x-session-id", "x")], [("session-id", "s")], [("session-id", "s"), ("cookie", "session-id=c")],
        [("x-session-id", "x"), ("session-id", "s")], [("x-session-id", ""), ("session-id", "s")],
        [("x-session-id", ""), ("session-id", ""), ("cookie", "session-id=c")],
        [("session-id", "a"), ("session-id", "b")], [("session-id", ""), ("session-id", "b")],
        [("x-session-id", "a"), ("x-session-id", "b")]]
    source = random.Random(5)
    pieces = ["session-id", "session-id=", "=", "; ", ";", " ", "a", "\t", "\"", "x1"]
    for _ in range(3000):
        requests.append([("cookie", "".join(source.choices(pieces, k=source.randrange(1, 12))).strip())])
    # Where we differ on purpose: HTTP/1 forbids a second Cookie header, and the filter, which then sees them joined with
    # ',', finds nothing; we read on, for proxies that pass the crumbs of HTTP/2 one by one.
    crumbs = [[("cookie", "a=1"), ("cookie", "session-id=c")]]
    assert ask(tool, ["session", "lua"], crumbs) == ['"c"']
    assert client.get(f"/{case.name}", crumbs)[0]["x-echo-session"] == "-"
    answers = client.get(f"/{case.name}", requests)
    chosen(answers)
    ours = [json.loads(line) for line in ask(tool, ["session", "lua"], requests)]
    found = 0
    for headers, answer, session in zip(requests, answers, ours):
        echo = answer["x-echo-session"]
        theirs = None if echo == "-" else base64.b64decode(echo).decode()
        theirs = theirs.removeprefix(",") if headers and headers[0] == ("x-session-id", "") else theirs
        assert session == (theirs or None), f"{headers}: we read {session!r}, the filter {theirs!r}"
        found += session is not None
    assert found > 300, found
    print(f"sessions: {len(requests)} requests read alike, {found} with a session", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--venv", required=True)
    parser.add_argument("--tool", required=True)
    options = parser.parse_args()
    binary = rig.install(options.venv)
    start = time.monotonic()
    seed = int(os.environ.get("LLMD_SEED", random.randrange(1 << 32)))
    print(f"seed {seed} (LLMD_SEED)", flush=True)
    source = random.Random(seed)

    with tempfile.TemporaryDirectory() as folder, rig.echo_servers(6) as (ports, held):
        def equal(count):
            return [(port, 1, 0) for port in ports[:count]]

        unequal = [(port, weight, 0) for port, weight in zip(ports, (1, 2, 5, 3, 17, 1))]
        removed = [host for host in equal(6) if host[0] != ports[2]]
        live = Case("ring-live", "ring", 4096, equal(5), dynamic=pathlib.Path(folder) / "endpoints.json")
        cases = [
            Case("ring-1024", "ring", 1024, equal(3)),
            Case("ring-4096", "ring", 4096, equal(3)),
            Case("ring-4096-weights", "ring", 4096, unequal),
            Case("ring-1024-weights", "ring", 1024, unequal),
            Case("ring-1024-removed", "ring", 1024, removed),
            Case("ring-murmur", "murmur", 1024, unequal),
            Case("ring-localities", "ring", 1024,
                 [(port, 1 + i % 3, i // 2) for i, port in enumerate(ports)], (3, 1, 7)),
            Case("maglev", "maglev", 65537, equal(6)),
            Case("maglev-weights", "maglev", 65537, unequal),
            Case("maglev-removed", "maglev", 65537, removed),
            Case("maglev-small", "maglev", 251, equal(4)),
        ]
        bounded = [Case("ring-bounded", "ring", 1024, equal(6), balance=120),
                   Case("maglev-bounded", "maglev", 65537, [(port, 1 + i % 2, 0) for i, port in enumerate(ports)],
                        balance=150)]
        everything = [*cases, *bounded, live]
        plain_port, lua_port, admin_port = rig.free_ports(3)
        config = {"static_resources": {
            "listeners": [listener(plain_port, everything, False), listener(lua_port, cases, True)],
            "clusters": [case.cluster() for case in everything]},
            "node": {"id": "test", "cluster": "test"}}
        with rig.envoy(binary, config, admin_port, folder):
            client = rig.Client(plain_port)

            def check(case, name=None, hosts=None, values=None):
                values = values or [[random_session(source)] for _ in range(SESSIONS)]
                requests = [[("x-session-id", value) for value in list_] for list_ in values]
                theirs = chosen(client.get(f"/{case.name}", requests))
                compare(name or case.name, case.picks(options.tool, values, hosts), theirs, len(hosts or case.hosts))

            for case in cases:
                check(case)
            check(cases[1], "repeated header", values=[[random_session(source) for _ in range(source.randrange(2, 5))]
                                                       for _ in range(1000)])
            empty = chosen(client.get("/ring-4096", [[("x-session-id", "")]] * 20))
            assert empty == cases[1].picks(options.tool, [[""]]) * 20, empty

            for case in bounded:
                check_bounded(plain_port, options.tool, case, held, source)

            check(live)
            fewer = live.hosts[:1] + live.hosts[2:]
            live.write(fewer)
            gone, deadline = f"127.0.0.1:{live.hosts[1][0]}", time.monotonic() + 20
            while f"ring-live::{gone}" in rig.admin(admin_port, "clusters"):
                assert time.monotonic() < deadline, "Envoy did not notice the endpoints file"
                time.sleep(0.05)
            check(live, "ring-live, one host fewer", fewer)

            check_sessions(rig.Client(lua_port), options.tool, cases[1])
    print(f"ended after {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
