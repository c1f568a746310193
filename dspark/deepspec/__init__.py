"""DeepSpec: train, calibrate, judge and exchange draft models."""
