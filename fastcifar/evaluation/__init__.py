"""What comes after training: a finished run's network, scored on images."""
