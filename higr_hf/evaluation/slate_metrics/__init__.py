"""An `evaluate` module that loads from this directory."""
