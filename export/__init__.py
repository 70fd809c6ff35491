"""A pipeline of its own: export the trained network as an ONNX file, which runs without torch."""
