"""Convert a network to ONNX. The same network gives the same bytes."""

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from export.runtime import INPUT, KEY, Description
from stages.common.errors import UserError
from stages.network.losses import log_probabilities

MAX_BYTES = 2**31 - 1  # limit of a protobuf message; a larger network would need separate files of weights


class LogProbabilities(nn.Module):
    """A network and the softmax: images uint8 (N, C, H, W) -> log-probabilities float32 (N, K)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return log_probabilities(self.network(images), "softmax")


def convert(network: nn.Module, description: Description) -> bytes:
    """Return the ONNX file of a network. The network is on the CPU; the file takes any number of images.

    Raises UserError if ONNX or its exporter lacks an operator, naming it, or if the file would exceed 2 GB.
    """
    exported = LogProbabilities(network) if description.classes else network
    images = torch.zeros(
        2, *description.image_shape, dtype=torch.uint8
    )  # with one image, the exporter would fix N to 1
    output = io.StringIO()  # many pages, meant for the author of the network
    try:
        with redirect_stdout(output), redirect_stderr(output):
            program = torch.onnx.export(
                exported.eval(),
                (images,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                input_names=[INPUT],
                output_names=[description.output],
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"the network cannot be exported to ONNX: {reason(error)}") from None
    proto: Any = program.model_proto if program else None
    for part in annotated(proto.graph):  # the annotations contain paths, which differ between folders
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del proto.metadata_props[:]
    proto.metadata_props.add(key=KEY, value=description.model_dump_json(exclude_none=True))
    if proto.ByteSize() > MAX_BYTES:
        raise UserError(f"the network cannot be exported to ONNX: {proto.ByteSize():,} bytes; at most {MAX_BYTES:,}")
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def annotated(graph: Any) -> Iterator[Any]:
    """The parts of a graph, and of the graphs inside it, to which the exporter adds annotations."""
    yield graph
    for parts in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        yield from parts
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from annotated(inner)


def reason(error: BaseException) -> str:
    """Why an export failed, in one line. It names the operator if ONNX lacks one."""
    root_cause: BaseException = error
    while cause := root_cause.__cause__ or root_cause.__context__:
        root_cause = cause
    text = str(root_cause).strip()
    if operator := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text):
        return f"ONNX has no operator for {operator[1]}; choose another network (model.name)"
    return f"{type(root_cause).__name__}: {text.splitlines()[0] if text else 'no reason given'}"
