"""Medical image segmentation that configures itself, with joint case-level classification."""
