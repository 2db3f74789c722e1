"""What runs a step, whatever the framework: buckets, exchanges under way, agreement between the workers."""
