"""Labels, regions and case-level class labels."""
