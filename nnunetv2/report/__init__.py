"""The HTML report on a trained model or on predictions: collect, judge, draw, write one page."""
