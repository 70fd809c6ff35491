"""A second pipeline: the trained network as an ONNX file, which runs without torch."""
