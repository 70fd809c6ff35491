"""A network of torch as the bytes of an ONNX file, the same bytes for the same network."""

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from export.runtime import INPUT, KEY, OUTPUT, Description
from stages.common.errors import UserError
from stages.network.losses import log_probabilities

MAX_BYTES = 2**31 - 1  # of a protobuf message; larger networks would need files of weights beside it


class LogProbabilities(nn.Module):
    """A network that ends in a temperature, and the softmax: images uint8 (N, C, H, W) -> log-probabilities (N, K)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return log_probabilities(self.network(images), "softmax")


def convert(network: nn.Module, description: Description) -> bytes:
    """The ONNX file of a network in evaluation mode, on the CPU, for any number of images.

    Raises UserError that names the operator, if ONNX or its exporter lacks one; and for weights of 2 GB and more.
    """
    images = torch.zeros(2, *description.image_shape, dtype=torch.uint8)  # one image would fix N to 1
    said = io.StringIO()  # the exporter explains itself to the authors of networks, on many pages
    try:
        with redirect_stdout(said), redirect_stderr(said):
            program = torch.onnx.export(
                LogProbabilities(network).eval(),
                (images,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"the network cannot be exported to ONNX: {reason(error)}") from None
    proto: Any = program.model_proto if program else None
    for part in annotated(proto.graph):  # names of files and lines of code: other bytes in another folder
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del proto.metadata_props[:]
    proto.metadata_props.add(key=KEY, value=description.model_dump_json(exclude_none=True))
    if proto.ByteSize() > MAX_BYTES:
        raise UserError(f"the network cannot be exported to ONNX: {proto.ByteSize():,} bytes; at most {MAX_BYTES:,}")
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def annotated(graph: Any) -> Iterator[Any]:
    """Whatever of a graph has notes of the exporter, graphs inside it included."""
    yield graph
    for parts in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        yield from parts
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from annotated(inner)


def reason(error: BaseException) -> str:
    """Why an export failed, in one line: the operator, if it is one that has no form in ONNX."""
    first: BaseException = error
    while cause := first.__cause__ or first.__context__:
        first = cause
    if operator := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(first)):
        return f"the operator {operator[1]} has no form in ONNX; choose another network (model.name)"
    return f"{type(first).__name__}: {str(first).strip().splitlines()[0] if str(first).strip() else 'no reason given'}"
