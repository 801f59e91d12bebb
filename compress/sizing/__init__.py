"""Students sized by a latency: what parts of towers cost on a machine, and which tower fits a budget best."""
