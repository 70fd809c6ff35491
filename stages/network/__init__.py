"""Networks: architectures, losses, the model file, pretrained weights, inference, the device."""
