"""What every layer may use: devices, and checks of what a caller gives."""
