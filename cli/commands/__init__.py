"""What can be typed in, one module per family. What the commands do is in the other modules of cli/."""
