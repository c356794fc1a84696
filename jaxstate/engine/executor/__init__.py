"""What an engine asks of a device, and the device that does it."""
