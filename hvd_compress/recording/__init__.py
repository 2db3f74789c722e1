"""What happened in a training: a recorder for any script, the record that it writes, and where else figures may go."""
