"""Every model of torchvision.models under the zoo's test, next to Torch-Pruning on the same list (`make coverage`)."""
