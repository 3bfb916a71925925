"""Classification heads and the network that joins them to a segmentation network."""
