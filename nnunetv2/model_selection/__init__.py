"""Which configuration, or pair of them, predicts best."""
