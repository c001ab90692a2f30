"""A small convolutional network trained on Fashion-MNIST: the model that the demo and the examples prune."""
