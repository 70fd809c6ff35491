"""What a network is: architectures, losses, the model file, inference, the device it runs on."""
