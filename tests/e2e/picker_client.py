"""An ext_proc and health client in Python, as Envoy would speak, over a real gRPC channel.

The messages come from proto/ by way of a descriptor set, since generated modules would be packages named `envoy` and
`grpc`, which are others' names.
"""
import pathlib
import queue
import subprocess
import tempfile

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from envoy_rig import ROOT

EXT_PROC = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX = 0, 1, 2, 3, 4


def _messages():
    files = ["envoy/service/ext_proc/v3/external_processor.proto", "grpc/health/v1/health.proto", "vllm/grpc/engine.proto"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "set"
        subprocess.run(["protoc", f"--proto_path={ROOT / 'proto'}", "--include_imports", f"--descriptor_set_out={path}",
                        *files], check=True)
        files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    return message_factory.GetMessageClassesForFiles([file.name for file in files], pool)


_ALL = _messages()
Request = _ALL["envoy.service.ext_proc.v3.ProcessingRequest"]
Response = _ALL["envoy.service.ext_proc.v3.ProcessingResponse"]
Generate = _ALL["vllm.grpc.engine.GenerateRequest"]
HealthRequest = _ALL["grpc.health.v1.HealthCheckRequest"]
HealthResponse = _ALL["grpc.health.v1.HealthCheckResponse"]


def set_fields(struct, values):
    for key, value in values.items():
        field = struct.fields[key]
        if isinstance(value, dict):
            set_fields(field.struct_value, value)
        elif isinstance(value, list):
            field.list_value.SetInParent()
            for item in value:
                field.list_value.values.add().string_value = item
        else:
            field.string_value = value


def headers(pairs, end=False, modes=(FULL_DUPLEX, FULL_DUPLEX), metadata=None, kind="request", raw=True):
    """`modes` None: a data plane that does not tell them."""
    message = Request()
    part = getattr(message, f"{kind}_headers")
    part.end_of_stream = end
    part.SetInParent()
    for name, value in pairs:
        header = part.headers.headers.add(key=name)
        value = value if isinstance(value, bytes) else value.encode()
        if raw:
            header.raw_value = value
        else:
            header.value = value.decode()
    if modes is not None and kind == "request":
        message.protocol_config.request_body_mode, message.protocol_config.response_body_mode = modes
        message.protocol_config.SetInParent()
    add_metadata(message, metadata)
    return message


def body(data, end=True, metadata=None, kind="request"):
    message = Request()
    part = getattr(message, f"{kind}_body")
    part.body, part.end_of_stream = data, end
    part.SetInParent()
    add_metadata(message, metadata)
    return message


def trailers(kind="request", pairs=()):
    message = Request()
    part = getattr(message, f"{kind}_trailers")
    part.SetInParent()
    for name, value in pairs:
        part.trailers.headers.add(key=name, raw_value=value.encode())
    return message


def add_metadata(message, metadata):
    for namespace, values in (metadata or {}).items():
        struct = message.metadata_context.filter_metadata[namespace]
        struct.SetInParent()
        set_fields(struct, values)


class Stream:
    """One request's stream: send() messages, next() answers; close() ends our half."""

    def __init__(self, channel, timeout=20, raw=False):
        self._outgoing = queue.Queue()
        self._call = channel.stream_stream(
            EXT_PROC, request_serializer=(lambda data: data) if raw else Request.SerializeToString,
            response_deserializer=Response.FromString)(iter(self._outgoing.get, None), timeout=timeout)

    def send(self, *messages):
        for message in messages:
            self._outgoing.put(message)
        return self

    def close(self):
        self._outgoing.put(None)
        return self

    def cancel(self):
        self._call.cancel()
        self._outgoing.put(None)

    def next(self):
        return next(self._call)

    def rest(self):
        """All answers until the server ends the stream, our half being closed."""
        self.close()
        return list(self._call)

    def code(self):
        """The status that the stream ended with."""
        return self._call.code()

    def details(self):
        return self._call.details()


class Routed:
    """The answers to a request's part: headers, body, destination."""

    def __init__(self, answers):
        self.answers = answers
        self.kinds = [answer.WhichOneof("response") for answer in answers]
        first = answers[0] if answers else Response()
        self.immediate = next((a.immediate_response for a in answers if a.WhichOneof("response") == "immediate_response"),
                              None)
        common = first.request_headers.response
        self.headers = set_headers(common.header_mutation)
        self.removed = list(common.header_mutation.remove_headers)
        self.clears_route_cache = common.clear_route_cache
        self.metadata = first.dynamic_metadata
        self.destination = self.headers.get("x-gateway-destination-endpoint", "")
        parts = [a.request_body.response.body_mutation.streamed_response for a in answers
                 if a.WhichOneof("response") == "request_body"]
        self.body = b"".join(part.body for part in parts)
        self.chunks = [len(part.body) for part in parts]
        self.ends = [part.end_of_stream for part in parts]

    @property
    def metadata_destination(self):
        fields = self.metadata.fields
        return fields["envoy.lb"].struct_value.fields["x-gateway-destination-endpoint"].string_value \
            if "envoy.lb" in fields else ""

    @property
    def status(self):
        return self.immediate.status.code if self.immediate else 200


def set_headers(mutation):
    return {option.header.key.lower(): (option.header.raw_value.decode("latin-1") or option.header.value)
            for option in mutation.set_headers}


def route(channel, pairs, *bodies, end=False, metadata=None, modes=(FULL_DUPLEX, FULL_DUPLEX), keep=False, raw=True,
          body_metadata=None):
    """Sends a request's headers and body and reads the answers up to its end: a Routed, and the stream if `keep`."""
    stream = Stream(channel)
    stream.send(headers(pairs, end, modes, metadata, raw=raw))
    for i, piece in enumerate(bodies):
        stream.send(body(piece, i == len(bodies) - 1, body_metadata))
    answers = []
    while True:
        try:
            answer = stream.next()
        except StopIteration:
            break
        answers.append(answer)
        kind = answer.WhichOneof("response")
        if kind == "immediate_response":
            break
        if kind == "request_headers" and (end or modes is not None and modes[0] == NONE):
            break
        if kind == "request_body" and answer.request_body.response.body_mutation.streamed_response.end_of_stream:
            break
        if kind == "request_body" and modes is not None and modes[0] in (BUFFERED, STREAMED):
            break
    routed = Routed(answers)
    if keep:
        return routed, stream
    stream.close()
    return routed


def health(channel, service, timeout=5):
    """The status as text, or the gRPC status code's name."""
    try:
        answer = channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=HealthRequest.SerializeToString,
                                     response_deserializer=HealthResponse.FromString)(
            HealthRequest(service=service), timeout=timeout)
    except grpc.RpcError as error:
        return error.code().name
    return {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}[answer.status]
