"""PASCAL-Context and PASCAL-Part."""
