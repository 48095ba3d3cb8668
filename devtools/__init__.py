"""What `dev.py` does: the environment, a ComfyUI server to work with, the demo and the tests."""
