"""What is removed from predicted segmentations because it makes them better on validation cases."""
