"""How codes become values. A scheme is one file: how it is recognised, which bytes a run of rows needs, how they decode."""
